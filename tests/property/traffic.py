"""What others write while engines live and die: clients, workers, and whoever writes what nobody can read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from flowpilot.core import notices
from flowpilot.engine import changelog, claim, trial
from flowpilot.engine import engine as engines
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import decode_object
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.ids import retry_id, root_id
from tests.property.storm import Storm
from tests.property.told import Told
from tests.unit.engine_world import CHAIN, WORKFLOWS, T, starting

WHICH = st.integers(0, 9)


class Traffic(RuleBasedStateMachine):
    """A world and the rules of those that write to it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        # Here processes end more often than three times, and families are short.
        self.patch.setattr(trial, "CRASHES", 10**9)
        self.patch.setattr(engines, "log", _Silent())
        self.patch.setattr(claim, "log", _Silent())
        self.patch.setattr(changelog, "log", _Silent())
        self.patch.setattr(notices, "SHORTEST_FAMILY_MS", 0)
        self.patch.setattr(m, "RULES", 1)
        self.told = Told()
        self.current: WorkflowDefinition = CHAIN
        self.raised = False
        self.seen: dict[tuple[str, int], int] = {}

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.storm = Storm(seed, 0)
        self.world = self.storm.world

    # -- what others write ----------------------------------------------------------------------------------

    @rule(keys=st.lists(st.integers(0, 2), min_size=1, max_size=3), which=WHICH, n=st.integers(1, 2))
    def start(self, keys: list[int], which: int, n: int) -> None:
        definition = (self.current, self.current, self.current, *WORKFLOWS[1:])[which % 6]
        for key in keys:
            message = starting(definition, f"k{key}", input={"n": n})
            self.storm.executions.append(message.execution)
            self.world.event(message, message.execution)

    @rule(which=WHICH, kind=st.sampled_from(("completed", "completed", "failed", "fatal", "started", "heartbeat")))
    def a_worker_answers(self, which: int, kind: str) -> None:
        """To a step message, one of the last or of long ago."""
        found = self.world.log.records(T.steps("q"))
        if not found:
            return
        step = decode_object(found[-1 - which % len(found)].value)
        task = step["task_id"]
        answers: dict[str, m.Event] = {
            "completed": m.StepCompleted(task_id=task, output={"n": which}),
            "failed": m.StepFailed(task_id=task, error=m.StepError(kind="Boom")),
            "fatal": m.StepFailed(task_id=task, error=m.StepError(kind="Fatal", retryable=False)),
            "started": m.StepStarted(task_id=task),
            "heartbeat": m.StepHeartbeat(task_id=task, details=which),
        }
        self.world.event(answers[kind], step["reply"]["key"], step["reply"]["partition"])

    @precondition(lambda self: self.storm.executions)
    @rule(which=WHICH, number=st.integers(0, 1))
    def cancel(self, which: int, number: int) -> None:
        execution = retry_id(root_id(self.storm.executions[which % len(self.storm.executions)]), number)
        self.world.event(m.CancelExecution(execution=execution, actor="a"), execution)

    @precondition(lambda self: self.storm.executions)
    @rule(which=WHICH, request=WHICH, from_start=st.booleans())
    def retry(self, which: int, request: int, from_start: bool) -> None:
        execution = self.storm.executions[which % len(self.storm.executions)]
        message = m.RetryExecution(execution=execution, request=f"r{request}", actor="a", from_start=from_start)
        self.world.event(message, execution)

    @rule(value=st.sampled_from((None, b"", b"{", b'{"v":9}', b'{"type":"step.completed","task_id":"x"}')))
    def a_bad_record(self, value: bytes | None) -> None:
        self.world.raw(value, 0)

    @rule(ms=st.sampled_from((1, 300, 1_000, 4_000, 30_000)))
    def time_passes(self, ms: int) -> None:
        self.world.now += ms


class _Silent:
    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None
