"""Whose inputs and outputs a run's messages hold: its own, or in a retry those of the executions it shares with.

They are no part of a state; they come through `Payloads` as the encoded JSON that was stored when they were taken.
"""

from __future__ import annotations

from typing import Protocol

import orjson

from flowpilot.core.state import Execution
from flowpilot.core.status import TERMINAL_EXECUTION, ExecutionStatus
from flowpilot_schemas.definition import WorkflowDefinition


class PayloadGone(Exception):
    """An input or output was removed: the execution is over and everything that needs it was sent."""


class Payloads(Protocol):
    """The stored inputs and outputs, as encoded JSON. Both raise `PayloadGone`."""

    def input(self, execution: str, run: int) -> bytes:
        """The input of a run."""
        ...

    def output(self, execution: str, run: int, step: str) -> bytes:
        """The output of a completed step."""
        ...


def input_of(state: Execution, payloads: Payloads) -> bytes:
    """The run's input: its own, or that of the execution which it retries."""
    place = (state.retry or {}).get("input_of") or (state.id, state.run)
    return payloads.input(*place)


def output_of(state: Execution, payloads: Payloads, step: str) -> bytes:
    """A completed step's output: this run's own, or of the nearest of those it shares results with."""
    if state.retry is None:
        return payloads.output(state.id, state.run, step)
    places: list[tuple[str, int]] = [(state.id, state.run), *state.retry["shares"]]
    *nearer, (last, its_run) = places
    for execution, run in nearer:
        try:
            return payloads.output(execution, run, step)
        except PayloadGone:
            continue
    return payloads.output(last, its_run, step)


def result_of(state: Execution, payloads: Payloads, definition: WorkflowDefinition) -> bytes | None:
    """The execution's output: of the step marked so, else of the only leaf, else a dict of the leaves.

    None if the leaves' outputs together are beyond the limit of a step's inputs: they stand in the
    history of each step.
    """
    marked = [step.name for step in definition.steps if step.output]
    leaves = marked or [
        step.name for step, below in zip(definition.steps, definition.dependents, strict=True) if not below
    ]
    outputs = {name: output_of(state, payloads, name) for name in leaves}
    if len(leaves) == 1:
        return outputs[leaves[0]]
    if sum(map(len, outputs.values())) > state.limits.step_inputs:
        return None
    return orjson.dumps({name: orjson.Fragment(output) for name, output in outputs.items()})


def may_lack_payloads(state: Execution) -> bool:
    """Whether what the run's messages need may have been removed, since all of them were sent: also what a
    retry that has ended shared with others, and what a run had whose key another has taken."""
    return is_over(state) or state.released or (state.retry is not None and state.status in TERMINAL_EXECUTION)


def is_over(state: Execution) -> bool:
    """Whether inputs and outputs of this run may have been removed."""
    return state.forgotten or state.status is ExecutionStatus.COMPLETED
