"""The roles as processes: composed as `flowpilot.app` does it, over the simulated ports."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.audit.writer import AuditWriter
from flowpilot.authoring import InputInvalid
from flowpilot.client.client import ConnectedClient
from flowpilot.client.connection import Connection
from flowpilot.client.errors import (
    ExecutionCancelled,
    ExecutionFailed,
    NotSent,
    ResultTimeout,
    RetryRefused,
    RetryUnanswered,
    StartUnconfirmed,
    UnknownWorkflow,
)
from flowpilot.ports.definitions import WorkflowDeleted
from flowpilot.ports.log import LogUnavailable, Rebalanced
from flowpilot.router.router import Router
from flowpilot.worker.handlers import Handlers
from flowpilot.worker.worker import StepWorker
from tests.simulation.broker import SimCatalog, SimProducer, SimReader
from tests.simulation.database import SimAuditStore
from tests.simulation.engine_process import EngineProcess
from tests.simulation.group import SimConsumer
from tests.simulation.loop import PROCESS
from tests.simulation.world import Role, Slot, World


def engine(world: World) -> Role:
    return EngineProcess(world)


def router(world: World) -> Role:
    producer, reader, topics = SimProducer(world.broker), SimReader(world.broker), world.topics

    def consumer(names: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced) -> SimConsumer:
        group = world.group(topics.router_group)
        return SimConsumer(group, names, on_assigned=on_assigned, on_revoked=on_revoked, strict=True)

    return Router(
        topics,
        world.limits,
        consumer=consumer,
        producer=producer,
        reader=reader,
        definitions=LogDefinitions(producer, reader, topics.definitions),
        catalog=SimCatalog(world.broker),
        commit_interval=world.plan.commit_interval,
    )


def worker(world: World) -> Role:
    producer, reader, plan = SimProducer(world.broker), SimReader(world.broker), world.plan
    handlers = Handlers(world.code())

    def consumer(
        group: str, names: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced
    ) -> SimConsumer:
        return SimConsumer(world.group(group), names, on_assigned=on_assigned, on_revoked=on_revoked)

    return StepWorker(
        handlers,
        topics=world.topics,
        producer=producer,
        reader=reader,
        make_consumer=consumer,
        definitions=LogDefinitions(producer, reader, world.topics.definitions),
        concurrency=plan.concurrency,
        queues=[queue for queue in handlers.queues() if queue != "nowhere"],
        worker_id=PROCESS.get().name,
        grace=plan.grace,
    )


def audit(world: World) -> Role:
    def consumer(names: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced) -> SimConsumer:
        group = world.group(world.topics.audit_group)
        return SimConsumer(group, names, on_assigned=on_assigned, on_revoked=on_revoked)

    return AuditWriter(
        world.topics,
        store=SimAuditStore(world.database),
        consumer=consumer,
        reader=SimReader(world.broker),
        catalog=SimCatalog(world.broker),
        linger=world.plan.linger,
        patience=1.0,
    )


class ClientProcess:
    """A client that starts, cancels, retries and waits, until there is calm."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = random.Random(f"{world.plan.seed}/{PROCESS.get().name}")
        self._stopping = asyncio.Event()
        producer, reader = SimProducer(world.broker), SimReader(world.broker)
        definitions = LogDefinitions(producer, reader, world.topics.definitions)
        connection = Connection(world.topics, world.limits, producer, reader, definitions, None, 10.0)
        self._client = ConnectedClient(connection, actor="user:simulated")
        self._waiting: set[asyncio.Task[None]] = set()
        self._started: list[str] = []

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        world, chance = self._world, self._chance
        pause = world.plan.length / world.plan.executions
        while not (world.calm or self._stopping.is_set()):
            await asyncio.sleep(pause * 2 * chance.random())
            try:
                await self._act()
            except (StartUnconfirmed, NotSent, LogUnavailable, UnknownWorkflow, RetryRefused, RetryUnanswered):
                continue
            except WorkflowDeleted:
                continue
        await self._stopping.wait()
        await self._client.close()

    async def _act(self) -> None:
        world, chance, client = self._world, self._chance, self._client
        kind = chance.random()
        if kind < 0.7 or not self._started:
            workflow = chance.choice(world.workflows)
            key = f"k{chance.randrange(6)}" if chance.random() < 0.6 else None
            given: Any = {"id": "c", "n": chance.randrange(2), "text": "y" * chance.choice((0, 0, 800))}
            try:
                handle = await client.start(chance.choice((workflow, workflow.name)), given, key=key)
            except InputInvalid:
                return
            self._started.append(handle.id)
            world.asked.append((handle.id, handle.start if handle.start is not None else -1))
            if chance.random() < 0.3:
                self._waiting.add(asyncio.ensure_future(self._wait(handle)))
        elif kind < 0.85:
            await client.cancel(chance.choice(self._started), "not wanted")
        else:
            of = chance.choice(self._started)
            handle = await client.retry(of, "again", from_start=chance.random() < 0.3, timeout=5.0)
            self._started.append(handle.id)

    async def _wait(self, handle: Any) -> None:
        try:
            await handle.result(timeout=20.0)
        except (ExecutionFailed, ExecutionCancelled, ResultTimeout, LogUnavailable):
            pass


def finish_deployment(world: World) -> None:
    """Workers with older code than there is are started anew, each asked once."""
    for slot in world.slots:
        if slot.process is not None and slot.body is not None and world.is_outdated(slot.process):
            slot.body.stop()


def slots(world: World) -> list[Slot]:
    """All processes of this world."""
    plan, found = world.plan, []
    for role, make, count in (
        ("engine", engine, plan.engines),
        ("router", router, plan.routers),
        ("worker", worker, plan.workers),
        ("audit", audit, plan.audits),
        ("client", ClientProcess, 1),
    ):
        found += [Slot(f"{role}-{number + 1}", role, make) for number in range(count)]  # type: ignore[arg-type]
    return found
