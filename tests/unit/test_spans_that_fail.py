"""Samplers, span processors and providers that raise: the work goes on, and each kind of error is told once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from structlog.testing import capture_logs

from flowpilot.adapters.opentelemetry import OpenTelemetryTracer
from flowpilot.ports.tracer import SpanOf
from tests.unit.client_world import World, onboarding
from tests.unit.client_world import run as with_client
from tests.unit.test_router_loop import World as RouterWorld
from tests.unit.test_router_loop import until, workflow
from tests.unit.test_spans import PLAIN, TRACE
from tests.unit.worker_rig import Rig, Workflow
from tests.waiting import eventually_async


class Refuses(Sampler):
    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        raise LookupError("no such tenant")

    def get_description(self) -> str:
        return "refuses"


class Processor(SpanProcessor):
    """Raises at a span's `begin` or `end`."""

    def __init__(self, at: str) -> None:
        self._at = at

    def on_start(self, *_: Any, **__: Any) -> None:
        if self._at == "begin":
            raise LookupError("no such tenant")

    def on_end(self, *_: Any) -> None:
        if self._at == "end":
            raise LookupError("no such tenant")


class Exports(SpanExporter):
    def export(self, *_: Any) -> Any:
        raise LookupError("no such tenant")


class Broken(TracerProvider):
    def get_tracer(self, *_: Any, **__: Any) -> Any:
        raise LookupError("no such tenant")


def provider(*processors: SpanProcessor, sampler: Sampler = ALWAYS_ON, kind: type = TracerProvider) -> Any:
    made = kind(sampler=sampler, shutdown_on_exit=False)
    for processor in processors:
        made.add_span_processor(processor)
    return made


def nobody(*_: Any) -> Any:
    raise LookupError("no such tenant")


# What is in place, what is logged of it, and whether a span goes on all the same.
TROUBLES: dict[str, tuple[Callable[[], Any], str | None, bool]] = {
    "sampler": (lambda: provider(sampler=Refuses()), "begin a span", False),
    "processor at the start": (lambda: provider(Processor("begin")), "begin a span", False),
    "processor at the end": (lambda: provider(Processor("end")), "end a span", True),
    "exporter": (lambda: provider(SimpleSpanProcessor(Exports())), None, True),  # OpenTelemetry's own care
    "provider": (lambda: provider(kind=Broken), "begin a span", False),
}
troubles = pytest.mark.parametrize("name", TROUBLES)
kitchen = Workflow("kitchen", version="1")


@kitchen.step
def plain() -> str:
    return str(trace.get_current_span().get_span_context().trace_id)


@kitchen.step
async def on_loop() -> str:
    return plain()


@kitchen.step
def bad() -> None:
    raise ValueError("burnt")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`told(name)` puts the trouble in place and gives a check of what was logged."""

    def put(name: str) -> Callable[[list[Any]], None]:
        make, doing, _ = TROUBLES[name]
        made = make()
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: made)

        def check(logged: list[Any]) -> None:
            lines = [line for line in logged if "OpenTelemetry" in line["event"]]
            assert len(lines) == (doing is not None), lines
            for line in lines:
                assert f"could not {doing}" in line["event"]
                assert line["error"] == "LookupError: no such tenant"
                assert __file__ in line["at"]

        return check

    return put


@troubles
def test_attempts_are_run_and_answered(told: Any, name: str) -> None:
    check = told(name)

    async def go() -> None:
        rig = Rig(kitchen)
        async with asyncio.timeout(20), rig.serving(tracer=OpenTelemetryTracer()):
            await rig.assigned()
            good = [rig.ready(step, headers=PLAIN) for step in ("plain", "on_loop") * 3]
            wrong = rig.ready("bad")
            await eventually_async(lambda: all(rig.answer(task) for task in [*good, wrong]))
            for task in good:
                answer = rig.answer(task, "completed")
                assert answer is not None
                assert (answer["output"] == str(int(TRACE[3:35], 16))) is TROUBLES[name][2]
            failed = rig.answer(wrong, "failed")
            assert failed is not None
            assert failed["error"]["kind"] == "ValueError"

    with capture_logs() as logged:
        asyncio.run(go())
    check(logged)


@troubles
def test_starts_are_sent(told: Any, name: str) -> None:
    check = told(name)

    async def test(world: World) -> None:
        async with world.client(tracer=OpenTelemetryTracer()) as client:
            for _ in range(3):
                await client.start(onboarding(), {"patient_id": "p-1"}, traceparent=TRACE)
                sent = world.start()[0].traceparent
                assert sent is not None
                assert (sent[:35], sent != TRACE) == (TRACE[:35], TROUBLES[name][2])

    with capture_logs() as logged:
        with_client(test)
    check(logged)


@troubles
def test_records_are_routed(told: Any, name: str) -> None:
    check = told(name)

    async def go() -> None:
        world = RouterWorld()
        world.log.create_topic("patients", 1)
        await world.definitions.register(workflow("onboarding", "patients"))
        await world.publish("patients", {"id": 1}, {"id": 2}, headers=PLAIN)
        async with world.running(tracer=OpenTelemetryTracer()):
            await until(lambda: len(world.starts()) == 2)
        assert {start["traceparent"][:35] for start in world.starts()} == {TRACE[:35]}

    with capture_logs() as logged:
        asyncio.run(go())
    check(logged)


def test_a_provider_that_cannot_be_found_and_a_span_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry looks for a provider by the environment, which may name none; a span may be anything."""
    monkeypatch.setattr(trace, "get_tracer_provider", nobody)
    monkeypatch.setattr(trace, "get_current_span", nobody)
    tracer = OpenTelemetryTracer()
    with capture_logs() as logged:
        for _ in range(2):
            assert (tracer.is_on, tracer.current()) == (False, None)
    assert [line["event"].partition(":")[0] for line in logged] == [
        "OpenTelemetry could not find the provider",
        "OpenTelemetry could not read the current span",
    ]


def test_a_span_that_cannot_be_made_current(monkeypatch: pytest.MonkeyPatch) -> None:
    made = provider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: made)
    span = OpenTelemetryTracer().begin(SpanOf("consumer", "x", {}), None)
    monkeypatch.setattr(trace, "set_span_in_context", nobody)
    with capture_logs() as logged:
        span.enter()
        span.end("failed", "why")
    assert [line["error"] for line in logged] == ["LookupError: no such tenant"]
