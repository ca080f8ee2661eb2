"""Spans of a real OpenTelemetry provider: whose children they are, what they say, and where they are current."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from flowpilot import NonRetryable, StepContext, Workflow
from flowpilot.adapters.opentelemetry import OpenTelemetryTracer
from flowpilot.client.blocking import BlockingClient
from flowpilot.client.errors import StartUnconfirmed
from flowpilot.ports.spans import sending
from flowpilot.ports.tracer import OFF, SpanOf
from tests.unit.api_world import PATIENT, STARTS, Api
from tests.unit.client_world import World, onboarding
from tests.unit.client_world import run as with_client
from tests.unit.engine_world import CHAIN, starting
from tests.unit.test_router_loop import World as RouterWorld
from tests.unit.test_router_loop import until, workflow
from tests.unit.worker_rig import TOPICS, Rig
from tests.waiting import eventually_async

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID, SPAN_ID = int(TRACE[3:35], 16), int(TRACE[36:52], 16)
PLAIN = (("traceparent", TRACE.encode()),)


class Spans:
    """A provider, in the place of the process's own while a test runs, and what it was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._exporter = InMemorySpanExporter()
        self.provide()

    def provide(self, sampler: Sampler | None = None) -> None:
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._patch.setattr(trace, "get_tracer_provider", lambda: self.provider)

    @property
    def ended(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        [found] = [span for span in self.ended if span.name == name]
        return found

    def begin(self, name: str) -> Any:
        """A span of the user's own, current in the block."""
        return self.provider.get_tracer("user").start_as_current_span(name)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    return Spans(monkeypatch)


def traceparent(span: ReadableSpan) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def place(span: ReadableSpan) -> tuple[int, int]:
    return span.get_span_context().trace_id, span.get_span_context().span_id


# -- worker


flow = Workflow("flow", version="1")


def _own_span(name: str) -> None:
    with trace.get_tracer_provider().get_tracer("user").start_as_current_span(name):
        pass


@flow.step
def plain(ctx: StepContext) -> str | None:
    _own_span("in a thread")
    return ctx.traceparent


@flow.step
async def on_loop(ctx: StepContext) -> str | None:
    await asyncio.sleep(0)
    _own_span("on the loop")
    return ctx.traceparent


@flow.step
def bad() -> None:
    raise NonRetryable("no such patient")


@flow.step
async def slow() -> None:
    await asyncio.sleep(60)


@flow.step
async def waits() -> None:
    await asyncio.sleep(60)


ATTEMPT = "process flowpilot.steps.flow"


def in_a_worker(scenario: Any, **options: Any) -> None:
    async def go() -> None:
        rig = Rig(flow)
        async with asyncio.timeout(20), rig.serving(tracer=OpenTelemetryTracer(), **options):
            await rig.assigned()
            await scenario(rig)

    asyncio.run(go())


@pytest.mark.parametrize(("step", "own"), [("plain", "in a thread"), ("on_loop", "on the loop")])
def test_an_attempt_is_a_span_below_what_the_step_message_says(spans: Spans, step: str, own: str) -> None:
    async def scenario(rig: Rig) -> None:
        rig.ready(step)  # not at offset 0
        await eventually_async(lambda: len(spans.ended) == 2)
        task = rig.ready(step, headers=PLAIN, attempt=3)
        await eventually_async(lambda: rig.answer(task, "completed"))
        execution = task.partition("/")[0]
        [first, span] = [found for found in spans.ended if found.name == ATTEMPT]
        assert (parent(first), parent(span)) == (None, (TRACE_ID, SPAN_ID))
        assert span.kind is SpanKind.CONSUMER
        assert (span.status.status_code, span.instrumentation_scope.name) == (StatusCode.UNSET, "flowpilot")
        assert dict(span.attributes or {}) == {
            "messaging.system": "kafka",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": TOPICS.steps("flow"),
            "messaging.destination.partition.id": "0",
            "messaging.kafka.offset": 1,
            "messaging.message.id": task,
            "flowpilot.workflow": "flow",
            "flowpilot.version": "1",
            "flowpilot.execution": execution,
            "flowpilot.step": step,
            "flowpilot.attempt": 3,
            "flowpilot.queue": "flow",
        }
        [_, inner] = [found for found in spans.ended if found.name == own]
        assert parent(inner) == place(span)
        answer = rig.answer(task)
        assert answer is not None
        assert answer["output"] == traceparent(span)

    in_a_worker(scenario)


def test_attempts_do_not_nest_in_each_other(spans: Spans) -> None:
    """With one place the second begins where the first ends: in its task."""

    async def scenario(rig: Rig) -> None:
        tasks = [rig.ready("on_loop") for _ in range(4)]
        await eventually_async(lambda: all(rig.answer(task) for task in tasks))
        attempts = [span for span in spans.ended if span.name == ATTEMPT]
        assert [parent(span) for span in attempts] == [None] * 4
        assert len({span.get_span_context().trace_id for span in attempts}) == 4

    in_a_worker(scenario, concurrency=1)


def test_an_attempt_that_fails_says_why(spans: Spans) -> None:
    async def scenario(rig: Rig) -> None:
        tasks = [rig.ready("bad"), rig.ready("slow", start_to_close_ms=200)]
        await eventually_async(lambda: all(rig.answer(task, "failed") for task in tasks))
        told = {span.attributes["flowpilot.step"]: span for span in spans.ended if span.attributes}
        assert told["bad"].status.status_code is told["slow"].status.status_code is StatusCode.ERROR
        assert (told["bad"].attributes or {})["error.type"] == "NonRetryable"
        assert told["bad"].status.description == "no such patient"
        assert (told["slow"].attributes or {})["error.type"] == "timed_out"

    in_a_worker(scenario)


def test_what_nobody_wants_any_more_or_another_takes_up_is_over_too(spans: Spans) -> None:
    async def scenario(rig: Rig) -> None:
        execution = rig.ready("waits").partition("/")[0]
        rig.ready("waits")
        await eventually_async(lambda: len(rig.workers[0]._attempts.running) == 2)
        rig.say({"type": "execution.cancelled", "execution": execution, "run": 7})
        await eventually_async(lambda: spans.ended)
        [span] = spans.ended
        assert (span.attributes or {})["error.type"] == "cancelled"

    in_a_worker(scenario, grace=0.0)
    assert (spans.ended[1].attributes or {})["error.type"] == "handed_back"
    assert len(spans.ended) == 2


@pytest.mark.parametrize("provider", ["none", "disabled", "nobody samples"])
def test_without_spans_the_trace_is_handed_on(spans: Spans, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    if provider == "none":
        monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    elif provider == "disabled":
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        spans.provide()
    else:
        spans.provide(ALWAYS_OFF)

    async def scenario(rig: Rig) -> None:
        for headers, handed_on in ((PLAIN, TRACE), ((), None), ((("traceparent", b"x"),), None)):
            task = rig.ready("plain", headers=headers)
            await eventually_async(lambda task=task: rig.answer(task))
            found = (rig.answer(task) or {}).get("output")
            if provider == "nobody samples":  # it has spans, which go nowhere, and others are told so
                assert found is not None
                assert int(found[-2:], 16) & trace.TraceFlags.SAMPLED == 0
                assert (found[:35] == TRACE[:35]) is (handed_on is not None)
            else:
                assert found == handed_on
        assert spans.ended == []

    in_a_worker(scenario)


def test_a_span_without_a_parent_begins_a_trace_wherever_it_is_opened(spans: Spans) -> None:
    with spans.begin("somebody else's"):
        OpenTelemetryTracer().begin(SpanOf("consumer", "ours", {}), None).end()
    assert parent(spans.named("ours")) is None


def test_a_provider_whose_spans_have_no_id_does_not_end_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blank(trace.NoOpTracer):
        def start_span(self, *_: Any, **__: Any) -> Any:
            return trace.INVALID_SPAN

        def get_tracer(self, *_: Any) -> Any:
            return self

    monkeypatch.setattr(trace, "get_tracer_provider", Blank)
    tracer = OpenTelemetryTracer()
    assert tracer.is_on
    for above in (TRACE, None):
        assert tracer.begin(SpanOf("consumer", "x", {}), above).traceparent == above


# -- client


def test_a_start_is_a_span_below_the_current_one(spans: Spans) -> None:
    async def test(world: World) -> None:
        async with world.client(tracer=OpenTelemetryTracer()) as client:
            with spans.begin("request") as request:
                handle = await client.start(onboarding(), {"patient_id": "p-1"})
                assert trace.get_current_span() is request
            span = spans.named("send flowpilot.events")
            assert parent(span) == place(spans.named("request"))
            assert (span.kind, span.status.status_code) == (SpanKind.PRODUCER, StatusCode.UNSET)
            assert (span.attributes or {})["flowpilot.execution"] == handle.id
            assert world.start()[0].traceparent == traceparent(span)
            await client.start(onboarding(), {"patient_id": "p-2"}, traceparent=TRACE)
            assert parent(spans.ended[-1]) == (TRACE_ID, SPAN_ID)
            assert world.start()[0].traceparent == traceparent(spans.ended[-1])
            world.line.cut = "refuses"
            with pytest.raises(StartUnconfirmed):
                await client.start(onboarding(), {"patient_id": "p-3"})

    with_client(test)


def test_a_start_that_fails_is_over_too(spans: Spans) -> None:
    start = starting(CHAIN, "1")
    with pytest.raises(ZeroDivisionError), sending(OpenTelemetryTracer(), "events", [start]):
        _ = 1 / 0
    [span] = spans.ended
    assert (span.attributes or {})["error.type"] == "ZeroDivisionError"
    assert span.status.status_code is StatusCode.ERROR


def test_the_blocking_client_sees_the_span_of_its_caller(spans: Spans) -> None:
    world = World()
    with BlockingClient(lambda: world.client(tracer=OpenTelemetryTracer())) as client, spans.begin("request"):
        client.start(onboarding(), {"patient_id": "p-1"})
    assert parent(spans.named("send flowpilot.events")) == place(spans.named("request"))


@pytest.mark.parametrize("tracer", [OpenTelemetryTracer(), OFF])
def test_without_a_provider_a_start_has_what_it_is_given(tracer: Any) -> None:
    async def test(world: World) -> None:
        async with world.client(tracer=tracer) as client:
            for given, sent in ((None, None), (TRACE, TRACE), ("broken", None)):
                await client.start(onboarding(), {"patient_id": "p-1"}, traceparent=given)
                assert world.start()[0].traceparent == sent

    with_client(test)


def test_without_a_provider_a_context_that_came_from_elsewhere_is_handed_on() -> None:
    context = trace.SpanContext(TRACE_ID, SPAN_ID, True, trace.TraceFlags(1))

    async def test(world: World) -> None:
        async with world.client(tracer=OpenTelemetryTracer()) as client:
            with trace.use_span(trace.NonRecordingSpan(context)):
                await client.start(onboarding(), {"patient_id": "p-1"})
        assert world.start()[0].traceparent == TRACE

    with_client(test)


# -- API


@pytest.mark.parametrize(("header", "sent"), [(TRACE, TRACE), ("00-broken", None), (None, None)])
def test_the_header_of_a_request_goes_with_what_it_starts(header: str | None, sent: str | None) -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            headers = {} if header is None else {"traceparent": header}
            answer = await http.post(STARTS, json=PATIENT, headers=headers)
        assert (answer.status_code, world.start()[0].traceparent) == (202, sent)

    with_client(test)


def test_a_request_whose_span_is_kept_is_between_the_header_and_the_start(spans: Spans) -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            await http.post(STARTS, json=PATIENT, headers={"traceparent": TRACE})

    with_client(test)
    [request] = [span for span in spans.ended if span.kind is SpanKind.SERVER]
    assert parent(request) == (TRACE_ID, SPAN_ID)
    parents = {place(span): parent(span) for span in spans.ended}
    above = [place(spans.named("send flowpilot.events"))]
    while (next_one := parents.get(above[-1])) is not None:
        above.append(next_one)
    assert above[1:].index(place(request)) == len(above) - 3  # all else is FastAPI's own; the header's is the last


# -- router


def test_each_start_of_a_record_is_a_span_below_what_the_record_says(spans: Spans) -> None:
    async def go() -> None:
        world = RouterWorld()
        world.log.create_topic("patients", 1)
        await world.definitions.register(workflow("onboarding", "patients"))
        await world.definitions.register(workflow("billing", "patients"))
        await world.publish("patients", b"{", headers=PLAIN)
        await world.publish("patients", {"id": 1}, headers=PLAIN)
        await world.publish("patients", {"id": 2})
        async with world.running(tracer=OpenTelemetryTracer()):
            await until(lambda: len(world.starts()) == 4 == len(spans.ended))
        told = {start["execution"]: start["traceparent"] for start in world.starts()}
        assert told == {(span.attributes or {})["flowpilot.execution"]: traceparent(span) for span in spans.ended}
        assert [parent(span) for span in spans.ended] == [(TRACE_ID, SPAN_ID)] * 2 + [None] * 2
        first = spans.ended[0]
        assert (first.name, first.kind) == ("send flowpilot.events", SpanKind.PRODUCER)
        assert (first.attributes or {})["flowpilot.origin"] == "patients/0/1"

    asyncio.run(go())
