"""Which handler runs a step message, by the definitions that this worker has and the order of their registration.

The rule is `flowpilot.core.serving`; here it is applied to what the definitions topic holds. That is read again
when a message names another definition than the worker's own, at most once a second however many do: so a worker
learns of versions that are registered, or applied again, while it runs, and no message makes it read on its own.

A definition may be registered again, as in a roll-back, while by what was read the worker's own is the newer. It is
registered before any step of it is sent, so a reading that begins after the message came has that registration: a
step of another definition begins only after such a reading (`after_refresh`). Many messages share one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from flowpilot.core.serving import Registered, Verdict, judge
from flowpilot.ports.definitions import Definitions
from flowpilot.ports.log import LogUnavailable, Reader
from flowpilot.worker.handlers import Handler, Handlers
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.messages import StepReady

_log = structlog.get_logger("flowpilot.worker")

# Seconds; the shorter where a step waits for it that may be run here.
_REFRESH_INTERVAL = 1.0
_SHORTEST_INTERVAL = 0.05


class NotServed(NamedTuple):
    """Why this worker does not run a step message, as the end of a sentence."""

    reason: str


class Serving:
    """See the module. `topics`: of the step messages, whose numbers of partitions go into reports."""

    def __init__(
        self, handlers: Handlers, definitions: Definitions, reader: Reader, topics: Sequence[str] = ()
    ) -> None:
        self._handlers, self._definitions = handlers, definitions
        self._reader, self._topics = reader, topics
        self._served: list[tuple[WorkflowDefinition, dict[str, Handler]]] = []
        self._by_hash: dict[str, tuple[WorkflowDefinition, dict[str, Handler]]] = {}
        self._stale, self._hurried = asyncio.Event(), asyncio.Event()
        self._waiting: list[Callable[[], None]] = []
        self._reason = ""
        self.partitions: dict[str, int] = {}
        """By topic, as far as it is known."""

    async def prepare(self) -> None:
        """Once the worker's definitions are registered. Raises `LogUnavailable`."""
        self._served = [
            (self._definitions.registered(workflow.definition), steps) for workflow, steps in self._handlers.all
        ]
        self._by_hash = {definition.hash: (definition, steps) for definition, steps in self._served}
        await self._count_partitions()

    async def run(self) -> None:
        """Read what was registered since, when something suggests it; until cancelled."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            if self._reason:
                _log.info("steps are left to other workers", reason=self._reason)
                self._reason = ""
            self._hurried.clear()
            waiting, self._waiting = self._waiting, []
            try:
                await self._definitions.refresh()
                await self._count_partitions()
            except LogUnavailable as error:
                _log.warning("the definitions cannot be read", error=str(error))
                self._waiting = waiting + self._waiting
                self._stale.set()
                await asyncio.sleep(_REFRESH_INTERVAL)
                continue
            for call in waiting:
                call()
            await asyncio.sleep(_SHORTEST_INTERVAL)
            try:
                async with asyncio.timeout(_REFRESH_INTERVAL - _SHORTEST_INTERVAL):
                    await self._hurried.wait()
            except TimeoutError:
                continue

    def after_refresh(self, call: Callable[[], None]) -> None:
        """Call it on the event loop once all that is registered by now has been read."""
        self._waiting.append(call)
        self._stale.set()
        self._hurried.set()

    async def _count_partitions(self) -> None:
        for topic in self._topics:
            self.partitions[topic] = await self._reader.partitions(topic)

    def own(self, message: StepReady) -> Handler | None:
        """The handler of the very definition that the message names, whatever else is registered."""
        own = self._by_hash.get(message.definition)
        return own[1].get(message.step) if own is not None and own[0].name == message.workflow else None

    def find(self, message: StepReady) -> Handler | NotServed:
        """The handler that runs the step: of that very definition, else of the newest that may, as read."""
        own = self.own(message)
        if own is not None:
            return own
        self._stale.set()
        found = self._of_another(message)
        if isinstance(found, NotServed):
            self._reason = found.reason
        return found

    def _of_another(self, message: StepReady) -> Handler | NotServed:
        mine = [
            (d, steps[message.step])
            for d, steps in self._served
            if d.name == message.workflow and message.step in steps
        ]
        if not mine:
            return NotServed("it has no such step")
        wanted = self._definitions.get(message.definition)
        if wanted is None:
            return NotServed("the definition is not known to it")
        if wanted.name != message.workflow or message.step not in wanted.index:
            return NotServed("the definition has no such step")
        step = self._registered(wanted, message.step)
        judged = [(self._registered(definition, message.step), handler) for definition, handler in mine]
        verdicts = [(judge(own, step), own.position or 0, handler) for own, handler in judged]
        may = [(position, handler) for verdict, position, handler in verdicts if verdict.runs]
        if may:
            return max(may, key=lambda each: each[0])[1]
        reasons = {verdict for verdict, _, _ in verdicts}
        closest = next(each for each in (Verdict.CONTRACT, Verdict.NEWER, Verdict.UNKNOWN) if each in reasons)
        return NotServed(closest.value)

    def _registered(self, definition: WorkflowDefinition, step: str) -> Registered:
        contract = definition.steps[definition.index[step]].contract
        return Registered(definition.hash, self._definitions.position(definition.hash), contract)
