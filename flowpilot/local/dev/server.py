"""The whole of FlowPilot for one developer in one folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from flowpilot.app.rule_sets import raise_rules
from flowpilot.local.dev.banner import banner
from flowpilot.local.dev.file import DevFile
from flowpilot.local.dev.found import Found, FoundWorkflow, discover, find
from flowpilot.local.dev.narrator import Narrator
from flowpilot.local.dev.roles import ROLES, WORKER, ApiPort, DevRoles, metrics_of
from flowpilot.local.dev.watch import Watch
from flowpilot.local.errors import ChildFailed, LocalError
from flowpilot.local.kafka import KafkaBroker
from flowpilot.local.services import LocalServices, remove_data
from flowpilot.local.supervisor import Supervisor
from flowpilot.local.system import LocalSystem
from flowpilot.settings import DEV_FILE, Settings

if TYPE_CHECKING:
    from flowpilot.adapters.kafka.admin import KafkaAdmin

# What takes long to import is imported where it is used: by then the servers are starting.

POLL = 0.2  # seconds
PARTITIONS = 4
# Seconds that handlers which run get when their file has changed.
WORKER_GRACE = 5.0


@dataclass(frozen=True)
class DevOptions:
    """What `flowpilot dev` was asked for. Without `references`, workflows are looked for in `folder`."""

    folder: Path
    references: tuple[str, ...] = ()
    data: Path | None = None
    ephemeral: bool = False
    kafka_port: int | None = None
    postgres_port: int | None = None
    api_port: int | None = None
    verbose: bool = False


class DevServer:
    """Kafka, PostgreSQL, every role and a worker that is started anew when its files change.

    `settings`: what the user has set, without servers. `say` takes one line for the user, from any thread.
    """

    def __init__(self, options: DevOptions, settings: Settings, say: Callable[[str], None]) -> None:
        self._options = options
        self._settings = settings
        self._say = say
        self._watch = Watch()
        self._found = Found([], [])
        self._serving = False
        self._followed = {WORKER, *ROLES} if options.verbose else {WORKER}

    def run(self, began: float) -> None:
        """Start, say so, and follow what happens until an exception ends it. `began`: by `time.monotonic`.

        Raises `LocalError`, `AdminError`, `DatabaseRefused`; nothing that was started stays behind.
        """
        for reference in self._options.references:
            place = reference.partition(":")[0]
            if place.endswith(".py") and not (self._options.folder / place).is_file():
                raise LocalError(f"there is no file {place}; write MODULE:WORKFLOW or path/file.py:name")
        with ExitStack() as stack:
            file = stack.enter_context(DevFile(self._options.folder))
            data = stack.enter_context(self._data())
            self._say("starting Kafka, PostgreSQL and FlowPilot's roles …")
            stack.callback(self._say, "stopped")
            looking = stack.enter_context(ThreadPoolExecutor(1)).submit(self._first_look)
            services = stack.enter_context(
                LocalServices(
                    data,
                    tiered="c1",
                    kafka_port=self._options.kafka_port,
                    postgres_port=self._options.postgres_port,
                    on_database=self._prepare_database,
                )
            )
            self._begin(services, data)
            stack.callback(self._roles.stop)
            self._start_roles(looking.result())
            file.publish({**self._system.environment, "FLOWPILOT_API_PORT": str(self._roles.api_port)})
            self._say_ready(began, data)
            Thread(target=self._learn_classes, args=(services, data), daemon=True).start()
            while True:
                time.sleep(POLL)
                self._narrator.tell()
                if changed := self._watch.changed():
                    self._reload(changed)

    # The start

    @contextmanager
    def _data(self) -> Iterator[Path]:
        if not self._options.ephemeral:
            data = (self._options.data or self._options.folder / DEV_FILE.parent).absolute()
            try:
                data.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LocalError(f"no data can be in {data}: {error.strerror}; name a place with --data") from None
            yield data
            return
        # Always the same place, so that what a killed run left there is found; by the lock nobody else uses it.
        data = (self._options.folder / DEV_FILE.parent / "ephemeral").absolute()
        if data.exists():
            with Supervisor(data):  # stops what the killed run left running
                pass
            remove_data(data)
        try:
            yield data
        finally:
            remove_data(data)

    def _prepare_database(self, url: str) -> None:
        from flowpilot.adapters.postgres.revision import is_current

        if is_current(url):
            return
        from flowpilot.app.database import prepare_database

        prepare_database(self._settings.model_copy(update={"database_url": SecretStr(url)}))

    def _begin(self, services: LocalServices, data: Path) -> None:
        """Topics, and the settings that every process of ours and every other terminal has. Raises `PortTaken`."""
        from flowpilot.adapters.kafka.admin import KafkaAdmin, UnknownTopic

        given = self._settings.model_fields_set
        asked = self._options.api_port
        if asked is None and "api_port" in given:
            asked = self._settings.api_port or None  # 0 is any
        port = ApiPort(asked, data / "api-port")
        servers = {
            "bootstrap_servers": services.bootstrap_servers,
            "database_url": SecretStr(services.database_url),
            "dev_versions": True,
        }
        settings = self._settings.model_copy(update=servers)
        self._admin: KafkaAdmin = KafkaAdmin(settings)
        # The count is fixed for life: data that are there already have theirs, unless another one is asked for.
        events = PARTITIONS if "event_partitions" not in given else settings.event_partitions
        if "event_partitions" not in given:
            try:
                events = self._admin.partitions(settings.topics.events)
            except UnknownTopic:
                pass
        steps = settings.step_partitions if "step_partitions" in given else PARTITIONS
        self._settings = settings.model_copy(update={"event_partitions": events, "step_partitions": steps})
        self._admin = KafkaAdmin(self._settings)
        self._admin.setup()
        raise_rules(self._settings, force=True)  # the engine that it starts is the only one
        environment = {
            "FLOWPILOT_EVENT_PARTITIONS": str(events),
            "FLOWPILOT_STEP_PARTITIONS": str(steps),
            "FLOWPILOT_DEV_VERSIONS": "true",
        }
        self._system = LocalSystem(services, environment=environment, cwd=self._options.folder)
        self._narrator = Narrator(services.supervisor, self._followed, self._say)
        self._roles = DevRoles(self._system, self._settings, port)
        for name in (*ROLES, WORKER):  # of earlier runs
            services.supervisor.log_path(name).unlink(missing_ok=True)

    def _start_roles(self, found: Found) -> None:
        more = {"FLOWPILOT_LOG_LEVEL": "info"} if self._logs_unset and self._options.verbose else {}
        with ThreadPoolExecutor() as pool:  # each spends its first seconds on imports
            starting: list[Future[Any]] = [pool.submit(self._try_to_serve, found)]
            starting += [pool.submit(self._roles.start, name, more) for name in ROLES]
            for started in starting:
                started.result()

    @property
    def _logs_unset(self) -> bool:
        return "log_level" not in self._settings.model_fields_set

    def _say_ready(self, began: float, data: Path) -> None:
        shown = data.relative_to(Path.cwd()) if data.is_relative_to(Path.cwd()) else data
        kept = "removed at the end" if self._options.ephemeral else "kept; the next start goes on with it"
        for line in banner(
            seconds=time.monotonic() - began,
            servers=self._system.services.bootstrap_servers,
            database=self._system.services.database_url,
            api=self._roles.api_address,
            data=f"{shown} ({kept})",
            workflows=self._found.workflows,
            error=self._found.error,
        ):
            self._say(line)

    def _learn_classes(self, services: LocalServices, data: Path) -> None:
        """Once on this machine, so that the next start is faster; for what it is worth."""
        with suppress(LocalError, OSError):
            KafkaBroker(data / "kafka-classes", tiered="c1").learn_classes(services.supervisor)

    # The worker, and the files it comes from

    def _look(self) -> Found:
        references = self._options.references or tuple(discover(self._options.folder))
        settings = {"PYTHONDONTWRITEBYTECODE": "1"}  # a half-written file leaves nothing behind
        found = find(references, self._options.folder, settings)
        folders = [] if self._options.references else [self._options.folder]
        files = list(found.files)
        if found.error is not None:
            # Which file is wrong is not known for sure: any beside those named, or that were imported before.
            named = [self._options.folder / reference.partition(":")[0] for reference in references]
            folders += [self._options.folder, *(path.parent for path in named)]
            files += self._found.files
        self._watch.look_at(files, folders)
        return found

    def _first_look(self) -> Found:
        """What does not import now may do so later; what is misnamed on the command line never will."""
        found = self._look()
        if found.misnamed and self._options.references:
            raise LocalError(found.error)
        return found

    def _reload(self, changed: list[Path]) -> None:
        found = self._look()
        names = ", ".join(sorted({path.name for path in changed}))
        if found.error is not None:
            still = "the worker goes on with what it had" if self._serving else "no worker until that is mended"
            self._say(f"{found.error}; {still}")
            return
        if self._try_to_serve(found):
            self._say(f"{names} changed: serving {self._versions(found.workflows) or 'no workflow'}")

    def _try_to_serve(self, found: Found) -> bool:
        """A worker that does not start ends nothing else: the next change may mend it."""
        from flowpilot.adapters.kafka.admin import AdminError

        try:
            self._serve(found)
        except (LocalError, AdminError) as error:
            self._say(f"the worker does not start: {error}")
            return False
        return True

    def _serve(self, found: Found) -> None:
        """Replace the worker by one that serves what was found; without a workflow there is none."""
        self._found = found
        if found.error is not None:
            return
        if self._serving:
            self._serving = False
            self._system.supervisor.stop(WORKER)
        if not found.workflows:
            return
        topics = [topic for workflow in found.workflows for topic in workflow.triggers]
        self._admin.ensure_user_topics(topics, PARTITIONS)
        level = {"FLOWPILOT_LOG_LEVEL": "info"} if self._logs_unset else {}
        self._narrator.begin(WORKER)
        try:
            self._system.start(
                WORKER,
                "worker",
                *(workflow.reference for workflow in found.workflows),
                environment={"PYTHONUNBUFFERED": "1", **level, **metrics_of(WORKER, self._settings)},
                grace=WORKER_GRACE,
            )
        except ChildFailed:
            self._watch.look_at(found.files, [self._options.folder])
            raise
        self._serving = True

    def _versions(self, workflows: list[FoundWorkflow]) -> str:
        from flowpilot.app.workflows import current_workflows
        from flowpilot.ports.log import LogUnavailable

        names = {workflow.name for workflow in workflows}
        try:
            current = asyncio.run(current_workflows(self._settings))
        except LogUnavailable:  # Kafka is being started again
            return ", ".join(sorted(names))
        return ", ".join(f"{found.name} {found.version}" for found in current if found.name in names)


def missing_parts() -> list[str]:
    """Modules of the extras that are not installed, by the name to import."""
    from importlib.util import find_spec

    needed = ("faust", "sqlalchemy", "alembic", "psycopg2", "fastapi", "uvicorn")
    return [name for name in needed if find_spec(name) is None]
