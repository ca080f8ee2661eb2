"""`run(seed)`: one world from its beginning to the verdict."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass, field
from itertools import islice

from flowpilot.ports.log import Fetched
from tests.simulation.chaos import Chaos
from tests.simulation.checks import CHECKS, Evidence, first_told
from tests.simulation.patches import simulated
from tests.simulation.plan import Changes, Plan, draw
from tests.simulation.processes import finish_deployment, slots
from tests.simulation.quiet import BOUND, behind
from tests.simulation.reference import Reference
from tests.simulation.workflows import POOL, Behaviour, behave_as
from tests.simulation.world import World

_LOOK = 0.5


@dataclass
class Verdict:
    """What came of a seed. `violations` are (invariant, sentence); none: all held."""

    seed: int
    changes: Changes
    plan: Plan
    violations: list[tuple[str, str]]
    trace_hash: str
    trace: list[str]
    took: float
    """T: simulated seconds from the last fault until all was quiet."""
    simulated: float
    executions: int
    events: int
    faults: dict[str, int]
    cpu: float = 0.0
    turns: int = 0

    @property
    def invariants(self) -> set[str]:
        """The names of those that were violated."""
        return {name for name, _ in self.violations}

    def repeat(self) -> str:
        """The command that does it again."""
        words = f"--seed {self.seed} {self.changes.arguments()}".strip()
        return f'make simulate ARGS="{words}"'


@dataclass
class _End:
    took: float = 0.0
    open: list[str] = field(default_factory=list)


def run(seed: int, changes: Changes | None = None) -> Verdict:
    """Simulate one seed. The same seed gives the same verdict and the same trace, in any process."""
    began = time.process_time()
    changes = changes or Changes()
    plan = draw(seed, changes, pool=POOL)
    collecting = gc.isenabled()
    gc.disable()  # a collection would end weak references at a moment of its own
    world = World(plan)
    try:
        end = _End()
        with simulated(world.loop, plan, world.ended_itself):
            behave_as(Behaviour(plan, world.chance("handlers"), world.online.ran))
            world.loop.run(_live(world, end))
        for failure in world.loop.failures:
            world.report("crash", failure)
        evidence = _judge(world, end)
        verdict = Verdict(
            seed,
            changes,
            plan,
            list(world.violations),
            world.trace_hash,
            list(world.trace),
            end.took,
            world.loop.time(),
            len(evidence.history),
            len(world.log.records(world.topics.events)),
            dict(world.faults),
            turns=world.loop.turns_taken,
        )
    finally:
        world.loop.dispose(world.processes)
        if collecting:
            gc.enable()
    verdict.cpu = time.process_time() - began
    return verdict


async def _live(world: World, end: _End) -> None:
    chaos = Chaos(world)
    world.slots = slots(world)
    for slot in world.slots:
        world.loop.later(world.chance("supervisor").random() * 0.3, world.begin, slot)
    chaos.begin()
    await asyncio.sleep(world.plan.length)
    _calm(world)
    began = world.loop.time()
    while True:
        await asyncio.sleep(_LOOK)
        finish_deployment(world)
        end.took = world.loop.time() - began
        end.open = behind(world)
        if not end.open or end.took > BOUND or world.violations:
            return


def _calm(world: World) -> None:
    """No more faults; what stands still goes on."""
    world.note("--- calm")
    world.calm = True
    world.plan.calm()
    for process in world.processes:
        world.loop.resume(process)


def _judge(world: World, end: _End) -> Evidence:
    history, wrong = first_told(world.log, world.topics)
    reference = Reference(world.broker, world.events_topic(), world.versions.known)
    evidence = Evidence(
        topics=world.topics,
        log=world.log,
        online=world.online,
        tables=world.database.tables,
        reference=reference,
        versions=world.versions,
        bad_events=world.bad_events,
        strays=world.strays,
        given_up=set(world.online.given_up),
        asked=world.asked,
        open=end.open,
        history=history,
    )
    if world.violations:
        return evidence  # it ended there: what is not finished is no finding
    for sentence in wrong:
        world.report("S3", sentence)
    events: list[Fetched] = world.log.records(world.topics.events)
    reference.fold(events, evidence.given_up)
    for name, check in CHECKS.items():
        try:
            for sentence in islice(check(evidence), 5):
                world.report(name, sentence)
        except (KeyError, TypeError, ValueError) as error:
            world.report(name, f"it could not be checked, so wrong is the history: {error!r}")
    return evidence
