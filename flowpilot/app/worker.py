"""The worker's process, and the worker that users embed in theirs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence

from flowpilot.adapters.announcer import LogAnnouncer
from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.kafka.admin import KafkaAdmin
from flowpilot.adapters.kafka.config import (
    announcer_properties,
    consumer_properties,
    producer_properties,
    reader_properties,
)
from flowpilot.adapters.kafka.consumer import KafkaConsumer
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.adapters.opentelemetry import OpenTelemetryTracer
from flowpilot.app.metrics import serving_metrics
from flowpilot.app.release import release
from flowpilot.app.signals import run_until_signalled
from flowpilot.authoring.workflow import Workflow
from flowpilot.ports.log import Rebalanced
from flowpilot.ports.meter import Meter
from flowpilot.settings import Settings, load_settings
from flowpilot.worker.handlers import Handlers
from flowpilot.worker.worker import StepWorker, new_worker_id

# Answers that end together travel together: half of the client's CPU for a third of a millisecond.
_LINGER_MS = 0.3


class Worker:
    """Runs the steps of `workflows` in this process, and registers their definitions.

        Worker(onboarding).run()

    `queues`: only these, else all of the workflows'. `concurrency`: handlers that run at once, else the settings'
    (16). `settings`: unless given, those of the environment. Raises `DefinitionError` for a workflow that is not
    complete, `UnknownQueue`, `SettingsError`.
    """

    def __init__(
        self,
        *workflows: Workflow,
        queues: Collection[str] | None = None,
        concurrency: int | None = None,
        settings: Settings | None = None,
    ) -> None:
        settings = settings or load_settings()
        if concurrency is not None:
            settings = Settings.model_validate({**dict(settings), "worker_concurrency": concurrency})
        self.queues = (handlers := Handlers(workflows)).queues(queues)
        self._settings = settings
        self._handlers = handlers
        self._worker_id = new_worker_id()
        self._lock = threading.Lock()
        self._running: tuple[asyncio.AbstractEventLoop, StepWorker] | None = None
        self._stopped = False

    def run(self, on_ready: Callable[[list[str]], None] = lambda queues: None) -> int:
        """Serve until SIGTERM or SIGINT (in the main thread) or `stop`; the exit code: 0, or 130 after SIGINT.

        `on_ready` is called with the queues once they are subscribed to. A loop that runs already awaits `serve`
        instead. Raises `WorkerExhausted`, `VersionConflict`, `AdminError`, `MetricsUnavailable`.
        """
        if threading.current_thread() is not threading.main_thread():
            asyncio.run(self.serve(on_ready))
            return 0
        return asyncio.run(run_until_signalled(_Signalled(self, on_ready)))

    async def serve(self, on_ready: Callable[[list[str]], None] = lambda queues: None) -> None:
        """Serve until `stop`: `run` on the running loop, without a look at signals. Raises as `run`."""
        with serving_metrics(self._settings, "worker") as meter:
            await self._serve(meter, on_ready)

    async def _serve(self, meter: Meter, on_ready: Callable[[list[str]], None]) -> None:
        settings = self._settings
        await asyncio.to_thread(KafkaAdmin(settings).ensure_step_topics, self.queues)
        producer = KafkaProducer({**producer_properties(settings), "linger.ms": _LINGER_MS})
        announcing = KafkaProducer(announcer_properties(settings))
        reader = KafkaReader(reader_properties(settings))
        try:
            worker = StepWorker(
                self._handlers,
                topics=settings.topics,
                producer=producer,
                reader=reader,
                make_consumer=self._consumer,
                definitions=LogDefinitions(
                    producer, reader, settings.topics.definitions, dev_versions=settings.dev_versions
                ),
                move_pointer=settings.dev_versions,
                concurrency=settings.worker_concurrency,
                queues=self.queues,
                on_ready=on_ready,
                meter=meter,
                tracer=OpenTelemetryTracer(),
                announcer=LogAnnouncer(announcing, settings.topics.members),
                session=settings.member_session,
                release=release(),
                worker_id=self._worker_id,
                secrets=settings.step_secrets,
            )
            with self._lock:
                self._running = (asyncio.get_running_loop(), worker)
                if self._stopped:
                    worker.stop()
            await worker.run()
        finally:
            with self._lock:
                self._running = None
            await asyncio.to_thread(producer.close)
            await asyncio.to_thread(announcing.close, 0.5)
            await asyncio.to_thread(reader.close)

    def stop(self) -> None:
        """Ask `run` or `serve` to return, from any thread. Asked twice, it waits for no handler."""
        with self._lock:
            self._stopped = True
            if self._running is not None:
                loop, worker = self._running
                loop.call_soon_threadsafe(worker.stop)

    def _consumer(
        self, group: str, topics: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced
    ) -> KafkaConsumer:
        # One consumer a queue: each is a member of its own group, so a static id needs nothing more.
        properties = consumer_properties(self._settings, group)
        if "client.id" not in self._settings.kafka_properties:
            properties["client.id"] = self._worker_id  # by which `queue list` finds the member's announcement
        return KafkaConsumer(properties, topics, on_assigned=on_assigned, on_revoked=on_revoked)


class _Signalled:
    """The worker as a role."""

    def __init__(self, worker: Worker, on_ready: Callable[[list[str]], None]) -> None:
        self._worker, self._on_ready = worker, on_ready

    async def run(self) -> None:
        await self._worker.serve(self._on_ready)

    def stop(self) -> None:
        self._worker.stop()


async def run_worker(
    settings: Settings,
    workflows: Sequence[Workflow],
    queues: Collection[str] | None = None,
    on_ready: Callable[[list[str]], None] = lambda queues: None,
) -> int:
    """Serve until a signal; the exit code. Raises what `Worker.run` raises, and `UnknownQueue`."""
    worker = Worker(*workflows, queues=queues or None, settings=settings)
    return await run_until_signalled(_Signalled(worker, on_ready))
