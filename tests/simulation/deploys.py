"""Somebody who deploys: new versions of workflows, deletions, workers with newer and older code.

Each command is a process of its own, that does what `flowpilot workflow apply` and `workflow delete` do, may die
half-way, and is then given again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.authoring import Workflow
from flowpilot.ports.definitions import WorkflowDeleted
from flowpilot.ports.log import LogUnavailable
from tests.simulation.broker import SimProducer, SimReader
from tests.simulation.loop import WORLD, Process
from tests.simulation.workflows import POOL_VERSIONS, version_of
from tests.simulation.world import World

Command = Callable[[LogDefinitions], Awaitable[object]]


class Deploys:
    """The commands of one world; one at a time, as a pipeline gives them. `busy` while one is under way."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._given = 0

    def new_version(self, chance: random.Random) -> bool:
        """A workflow has another version; its workers are there before it is applied, or after."""
        world = self.world
        number = chance.choice(world.plan.workflows)
        versions = [w for w in world.workflows if w.name == version_of(number, 1).name]
        if world.deploying or len(versions) >= POOL_VERSIONS:
            return False
        workflow = version_of(number, len(versions) + 1)
        world.fault("new_version", f"{workflow.name}@{workflow.version}")
        self._begin(self._deploy(workflow, chance))
        return True

    def deletion(self, chance: random.Random) -> bool:
        """A workflow is deleted, and applied again: the version of before, or another that there is."""
        world = self.world
        if world.deploying:
            return False
        workflow = chance.choice(world.workflows)
        world.fault("deletion", workflow.name)
        self._begin(self._delete_and_apply(workflow, chance))
        return True

    def _begin(self, story: Awaitable[None]) -> None:
        self.world.deploying = True
        self.world.loop.spawn(WORLD, story)  # type: ignore[arg-type]

    async def _deploy(self, workflow: Workflow, chance: random.Random) -> None:
        first = chance.random() < 0.5
        if first:
            self.world.releases.append([*self.world.workflows, workflow])
            self._restart_a_worker(chance)
            await asyncio.sleep(chance.choice((0.0, 1.0, 3.0)))
        await self._until_done(
            "apply", chance, lambda known: known.register(workflow.definition, move_pointer=True)
        )
        if not first:
            await asyncio.sleep(chance.choice((0.0, 1.0, 3.0)))
            self.world.releases.append([*self.world.workflows, workflow])
            self._restart_a_worker(chance)
        self.world.deploying = False

    async def _delete_and_apply(self, workflow: Workflow, chance: random.Random) -> None:
        await self._until_done(
            "delete", chance, lambda known: known.delete(workflow.name), often=chance.choice((1, 9))
        )
        await asyncio.sleep(chance.choice((0.0, 0.3, 1.0, 3.0)))
        await self._until_done(
            "apply", chance, lambda known: known.register(workflow.definition, move_pointer=True)
        )
        self.world.deploying = False

    async def _apply(self, workflow: Workflow, chance: random.Random) -> None:
        definition = workflow.definition
        await self._until_done("apply", chance, lambda known: known.register(definition, move_pointer=True))

    async def _until_done(self, name: str, chance: random.Random, command: Command, often: int = 1_000) -> None:
        """The command, again and again until it succeeds; or so often."""
        for _ in range(often):
            if await self._command(name, chance, command):
                return
            await asyncio.sleep(0.3)

    async def _command(self, name: str, chance: random.Random, command: Command) -> bool:
        """One process: whether it did what it was to do."""
        world, done, over = self.world, [False], asyncio.Event()
        self._given += 1
        process = Process(f"{name}-{self._given}", "operator")
        world.processes.append(process)

        async def run() -> None:
            producer, reader = SimProducer(world.broker), SimReader(world.broker)
            try:
                await command(LogDefinitions(producer, reader, world.topics.definitions))
                done[0] = True
            except (LogUnavailable, WorkflowDeleted) as error:
                world.note(f"{process} failed: {error}")
            finally:
                if not process.dead:
                    world.loop.later(0.0, over.set)

        world.loop.spawn(process, run())
        if chance.random() < 0.2 and not world.calm:
            world.loop.later(world.plan.latency * chance.uniform(1.0, 8.0), self._kill, process, over)
        await over.wait()
        return done[0]

    def _kill(self, process: Process, over: asyncio.Event) -> None:
        if not over.is_set():
            self.world.note(f"{process} dies half-way")
            self.world.loop.kill(process)
            over.set()

    def _restart_a_worker(self, chance: random.Random) -> None:
        """The first of a rolling deployment; others follow when they are started again for whatever reason."""
        workers = [slot for slot in self.world.slots if slot.role == "worker" and slot.body is not None]
        if workers and not self.world.calm:
            slot = chance.choice(workers)
            if slot.body is not None:
                self.world.loop.call_soon(slot.body.stop)
