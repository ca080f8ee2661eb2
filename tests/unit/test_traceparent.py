"""What is a traceparent, where it is taken from, and what it goes with: from the trigger to steps and history."""

from __future__ import annotations

from typing import Any

import pytest

from flowpilot import StepContext, Workflow, on_topic
from flowpilot.core.state import decode_execution, encode_execution
from flowpilot.engine.keys import state_key
from flowpilot.ports.log import Headers
from flowpilot.testing import WorkflowEnvironment
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode_message, parse
from flowpilot_schemas.tracing import as_traceparent, in_headers
from tests.unit.engine_world import CHAIN, Owner, T, World, drain, starting
from tests.unit.retry_world import anew, failed_at_b, over_all_windows, retried, started
from tests.unit.test_router_cloudevents import DATA, JSON_EVENT, outcome, record, structured
from tests.unit.test_router_cloudevents import in_headers as binary

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
PLAIN = (("traceparent", TRACE.encode()),)


# What is one


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (TRACE, TRACE),
        (TRACE.encode(), TRACE),
        (f"{TRACE[:-2]}ff", f"{TRACE[:-2]}ff"),
        (f"cc{TRACE[2:]}", TRACE),
        (f"cc{TRACE[2:-2]}02", f"{TRACE[:-2]}00"),
        (f"01{TRACE[2:]}-what-the-future-will-be-like", TRACE),
        *[
            (wrong, None)
            for wrong in (
                "", TRACE.upper(), TRACE[:-1], f"{TRACE}0", f"{TRACE}-00", f"{TRACE}\n", f" {TRACE}",
                f"ff{TRACE[2:]}", f"01{TRACE[2:]}.more", TRACE.replace("-", "_"), f"0g{TRACE[2:]}",
                f"{TRACE[:3]}{'0' * 32}{TRACE[35:]}", f"{TRACE[:36]}{'0' * 16}{TRACE[52:]}",
                b"\xff\xfe", None, 7, [TRACE], {"v": TRACE}, "٠" * 55,
            )
        ],
    ],
)  # fmt: skip
def test_what_is_a_traceparent(given: Any, taken: str | None) -> None:
    assert as_traceparent(given) == taken
    message = starting(CHAIN, "1").model_dump(mode="json", exclude={"traceparent"})
    if not isinstance(given, bytes):
        assert parse(m.StartExecution, {**message, "traceparent": given}).traceparent == taken


def test_the_last_of_several_headers_counts() -> None:
    assert in_headers((("traceparent", OTHER.encode()), ("b", b""), *PLAIN, ("Traceparent", b"x"))) == TRACE
    assert in_headers((*PLAIN, ("traceparent", b"broken"))) is None
    assert in_headers(()) is None


def test_a_message_without_one_is_as_it_was() -> None:
    start = starting(CHAIN, "1")
    assert b"traceparent" not in encode_message(start)
    assert b"traceparent" not in encode_message(start.model_copy(update={"traceparent": None}))
    assert b"traceparent" in encode_message(start.model_copy(update={"traceparent": TRACE}))


# Where it is taken from


@pytest.mark.parametrize(
    ("value", "headers", "taken"),
    [
        (DATA, PLAIN, TRACE),
        (DATA, (), None),
        (DATA, (("traceparent", b"\xff"),), None),
        (DATA, (("ce_traceparent", TRACE.encode()),), None),  # no CloudEvent
        (DATA, binary(ce_traceparent=TRACE), TRACE),
        (structured(traceparent=TRACE), JSON_EVENT, TRACE),
        (structured(traceparent=TRACE), (), TRACE),
        (structured(traceparent=OTHER), (*JSON_EVENT, *PLAIN), TRACE),
        (DATA, (*binary(ce_traceparent=OTHER), *PLAIN), TRACE),
        (DATA, (*binary(ce_traceparent=TRACE), ("traceparent", b"broken")), TRACE),
    ],
)
def test_a_records_trace_goes_with_what_it_starts(value: Any, headers: Headers, taken: str | None) -> None:
    start = outcome(record(value, headers))
    assert isinstance(start, m.StartExecution), start
    assert start.traceparent == taken


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (DATA, binary(ce_traceparent=b"\xff\xfe")),
        (DATA, binary(ce_tracestate=b"\xff\xfe", ce_traceparent="broken")),
        (DATA, (*binary(ce_traceparent=""), ("ce_traceparent", b"other"))),
        (structured(traceparent={"no": "text"}, tracestate=1.5), JSON_EVENT),
        (structured(traceparent=[]), ()),
        (structured(traceparent="one"), (*JSON_EVENT, *binary(ce_traceparent="another"))),
        (structured(), (*JSON_EVENT, *binary(ce_traceparent="no attribute"))),
    ],
)
def test_a_malformed_one_is_ignored_and_never_an_error_of_the_record(value: Any, headers: Headers) -> None:
    start = outcome(record(value, headers))
    assert isinstance(start, m.StartExecution), start
    assert (start.traceparent, start.input) == (None, DATA)


# What it goes with


def step_headers(world: World, execution: str) -> list[Headers]:
    """Of each step message of the execution."""
    records = world.log.records(T.steps("q"))
    return [
        found.headers
        for found in records
        if found.key is not None and found.key.startswith(f"{execution}/".encode())
    ]


def held(owner: Owner, execution: str) -> bytes:
    [found] = [entry.value for key, entry in owner.engine.table(0).items() if key == state_key(execution)]
    assert found is not None
    return found


def test_it_goes_with_every_attempt_and_into_the_first_event() -> None:
    world = World()
    owner = world.owner()
    execution = failed_at_b(world, owner)
    assert (step_headers(world, execution), started(world, execution).get("traceparent")) == ([(), ()], None)
    assert b"traceparent" not in held(owner, execution)
    message = starting(CHAIN, "2", traceparent=TRACE)
    world.event(message, message.execution)
    drain(owner)
    assert step_headers(world, message.execution) == [PLAIN]
    assert started(world, message.execution)["traceparent"] == TRACE
    state = decode_execution(held(owner, message.execution))
    assert (state.traceparent, encode_execution(state)) == (TRACE, held(owner, message.execution))


def test_a_refused_start_tells_it_too() -> None:
    world = World()
    owner = world.owner()
    message = starting(CHAIN, "1", traceparent=TRACE).model_copy(update={"definition": "sha256:none"})
    world.event(message, message.execution)
    drain(owner)
    assert (started(world, message.execution)["type"], started(world, message.execution)["traceparent"]) == (
        "StartRefused",
        TRACE,
    )


def test_a_duplicate_changes_nothing() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1", traceparent=TRACE)
    world.start(CHAIN, "1", traceparent=OTHER)
    drain(owner)
    assert world.history(execution) == ["ExecutionStarted", "StepReady", "StartDeduplicated"]
    assert decode_execution(held(owner, execution)).traceparent == TRACE


def test_a_retry_keeps_the_originals() -> None:
    world = World()
    owner = world.owner()
    world.start(CHAIN, "1", traceparent=TRACE)
    execution = failed_at_b(world, owner)
    retry = retried(world, owner, execution, traceparent=OTHER)
    assert started(world, retry)["traceparent"] == TRACE
    assert (step_headers(world, execution), step_headers(world, retry)) == ([PLAIN] * 2, [PLAIN])


def test_a_retry_of_what_was_forgotten_has_what_the_asker_knows() -> None:
    world = World()
    owner = world.owner()
    execution = failed_at_b(world, owner)
    over_all_windows(world, owner)
    retry = retried(world, owner, execution, traceparent=TRACE, **anew())
    assert started(world, retry)["traceparent"] == TRACE
    assert step_headers(world, retry) == [PLAIN]


def test_the_test_kit_hands_it_to_handlers() -> None:
    flow = Workflow("flow", version="1", triggers=[on_topic("orders")])

    @flow.step
    def look(ctx: StepContext) -> str | None:
        return ctx.traceparent

    with WorkflowEnvironment.blocking(flow) as env:
        assert env.start().result() is None
        [execution] = env.publish("orders", structured(traceparent=TRACE))
        assert execution.result() == TRACE
