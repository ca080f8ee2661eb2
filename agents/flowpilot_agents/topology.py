"""Who reads what, and who is called: the whole binding on one page.

flowpilot.events ──► agent `executions` ──► Executions.run  ──► Engine.process
the changelog    ──► table `executions` ──► BulkRecovery    ──► PartitionTable.load, then Engine.assign
every 50 ms      ──► timer              ──► Executions.tick ──► Engine.tick
"""

from __future__ import annotations

from typing import Any, cast

from flowpilot.ports.log import Producer
from flowpilot.ports.meter import OFF, Meter
from flowpilot.settings import Settings
from flowpilot_agents.app import SESSION_TIMEOUT, EngineApp
from flowpilot_agents.contract import Engine
from flowpilot_agents.execution import Executions
from flowpilot_agents.table import ExecutionTable
from flowpilot_agents.watch import Pulse

TABLE = "executions"
AGENT = "executions"
TICK_SECONDS = 0.05


def new_pulse() -> Pulse:
    """After half a session without a turn of the loop, the group may have given the partitions away."""
    return Pulse(SESSION_TIMEOUT / 2)


def bind(
    settings: Settings, engine: Engine, producer: Producer, pulse: Pulse, meter: Meter = OFF, **overrides: Any
) -> EngineApp:
    """The app with its topic, table, agent and timer. `overrides` are Faust settings."""
    executions = Executions(engine, pulse, settings.batch_size, meter)
    app = EngineApp(settings, executions, producer, **overrides)
    events = app.topic(settings.topics.events, key_type=bytes, value_type=bytes)
    table = cast(ExecutionTable, app.Table(TABLE, key_type=bytes, value_type=bytes))
    if table.changelog_topic_name != settings.topics.changelog:
        raise RuntimeError(f"Faust names the changelog {table.changelog_topic_name}: a name that is never changed")

    @app.agent(events, name=AGENT, concurrency=1)
    async def execute(stream: Any) -> None:
        # The stream is not iterated: it would take records one by one and acknowledge them by itself.
        await executions.run(stream.channel.queue)

    app.timer(TICK_SECONDS, name="tick", traced=False)(executions.tick)

    return app
