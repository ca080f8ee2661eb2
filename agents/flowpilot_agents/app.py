"""The Faust app: its settings, and what of Faust's parts is replaced."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import faust
from mode.utils.times import Seconds

from flowpilot.ports.log import Producer
from flowpilot.settings import Settings
from flowpilot_agents.execution import Executions
from flowpilot_agents.security import credentials
from flowpilot_agents.table import EngineTables, ExecutionTable
from flowpilot_agents.transport import Transport
from flowpilot_agents.watch import end_process

# All in seconds.
SESSION_TIMEOUT = 8.0
HEARTBEAT_INTERVAL = 2.0
COMMIT_INTERVAL: Seconds = 0.5
# A batch that takes longer is given up on: the member leaves the group.
MAX_POLL_INTERVAL = 60.0

# Of a changelog in recovery; the engine takes its own batches out of it.
RECORDS_A_FETCH = 2_000


class EngineApp(faust.App):
    """An app whose consumer, producer, table and recovery are ours (transport.py, table.py)."""

    def __init__(self, settings: Settings, executions: Executions, producer: Producer, **overrides: Any) -> None:
        self.executions = executions
        self.log_producer = producer
        self.events_topic = settings.topics.events
        self.announce: Callable[[], Coroutine[Any, Any, None]] | None = None
        """Runs beside everything else from the beginning."""
        member = settings.member_id
        options: dict[str, Any] = {
            "broker": [f"kafka://{server.strip()}" for server in settings.bootstrap_servers.split(",")],
            "broker_credentials": credentials(settings.kafka_properties),
            "broker_client_id": "flowpilot",
            # Exactly-once sends outside any transaction what goes to topics that the app does not consume.
            "processing_guarantee": "at_least_once",
            "store": "memory://",
            "Table": ExecutionTable,
            "TableManager": EngineTables,
            # A standby of a store in memory would read everything again when it is promoted.
            "table_standby_replicas": 0,
            "topic_allow_declare": False,
            "topic_disable_leader": True,
            "consumer_auto_offset_reset": "earliest",
            "consumer_group_instance_id": member,
            # Faust asserts that a returning static member still has the URL it had.
            "canonical_url": f"http://{member or uuid.uuid4().hex}",
            "broker_commit_interval": COMMIT_INTERVAL,
            "broker_session_timeout": SESSION_TIMEOUT,
            "broker_heartbeat_interval": HEARTBEAT_INTERVAL,
            "broker_rebalance_timeout": SESSION_TIMEOUT,
            "broker_max_poll_interval": MAX_POLL_INTERVAL,
            "broker_max_poll_records": RECORDS_A_FETCH,
            "stream_recovery_delay": 0.0,
            "stream_wait_empty": True,
            "producer_request_timeout": 5.0,  # Faust's default is 20 minutes
            "web_enabled": False,  # its pages show the tables to anybody
            "autodiscover": False,
            "worker_redirect_stdouts": False,
            **overrides,
        }
        super().__init__(settings.topics.app_id, **options)

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> Transport:
        return Transport(self.conf.broker_producer, self)

    def _create_directories(self) -> None:
        """Nothing lies on a disk."""

    async def on_start(self) -> None:
        """Watch the loop from the beginning, not only from the end of recovery as Faust's own tasks."""
        await super().on_start()
        self.add_future(self.executions.pulse.run())
        if self.announce is not None:
            self.add_future(self.announce())

    def _crash(self, reason: BaseException) -> None:
        # Faust would stop in order, and on its way commit.
        if not self.should_stop:
            end_process("a part of Faust failed", reason)
        super()._crash(reason)
