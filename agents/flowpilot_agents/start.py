"""The life of the engine's process: checks, the app, Faust's worker, SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import NoReturn

from flowpilot.adapters.kafka.admin import AdminError, KafkaAdmin, KafkaUnreachable
from flowpilot.adapters.kafka.config import producer_properties
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.app.kafka import reach_kafka
from flowpilot.app.logging import configure_logging
from flowpilot.app.metrics import MetricsUnavailable, serving_metrics
from flowpilot.ports.log import Producer
from flowpilot.ports.meter import Meter
from flowpilot.settings import Settings
from flowpilot_agents.contract import Engine
from flowpilot_agents.namesake import tell_of_namesakes
from flowpilot_agents.watch import GuardedProducer

BuildEngine = Callable[[Settings, Producer, Meter], Engine]

EXIT_ERROR = 1
EXIT_UNREACHABLE = 7


class CannotStart(Exception):
    """The sentence that is printed, and the exit code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


def check_topics(settings: Settings) -> None:
    """Raises CannotStart if Kafka does not answer, or topics are missing or do not fit together."""
    topics = settings.topics
    admin = KafkaAdmin(settings)
    names = [topic.name for topic in topics.core()]
    try:
        reach_kafka(settings, _tell if sys.stderr.isatty() else lambda _: None)
        if missing := set(names) - admin.exists(names):
            absent = ", ".join(sorted(missing))
            raise CannotStart(f"Topics are missing ({absent}): run `flowpilot setup`", EXIT_ERROR)
        events, changelog = admin.partitions(topics.events), admin.partitions(topics.changelog)
    except KafkaUnreachable as error:
        raise CannotStart(str(error), EXIT_UNREACHABLE) from None
    except AdminError as error:
        raise CannotStart(str(error), EXIT_ERROR) from None
    if events != changelog:
        raise CannotStart(
            f"{topics.events} has {events} partitions and {topics.changelog} {changelog}: they must be equal, and "
            "can never be changed",
            EXIT_ERROR,
        )


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def run(settings: Settings, build_engine: BuildEngine) -> NoReturn:
    """Run the engine until SIGTERM or SIGINT, then exit."""
    configure_logging(settings, "engine")
    # A tick that waits for a batch is late, and that is in order.
    logging.getLogger("mode.timers").setLevel(logging.ERROR)
    tell_of_namesakes(settings.member_id)
    serving = ExitStack()
    try:
        check_topics(settings)
        meter = serving.enter_context(serving_metrics(settings, "engine"))
    except CannotStart as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.code) from None
    except MetricsUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_ERROR) from None
    _use_uvloop()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    import faust  # here, so that a check that fails does not wait for it

    from flowpilot_agents.announce import EngineAnnouncement
    from flowpilot_agents.topology import bind, new_pulse

    log_producer = KafkaProducer(producer_properties(settings, gapless=True))
    pulse = new_pulse()
    guarded = GuardedProducer(log_producer, pulse)
    engine = build_engine(settings, guarded, meter)
    app = bind(settings, engine, guarded, pulse, meter)
    announcement = EngineAnnouncement(settings, engine)
    app.announce = announcement.run
    worker = faust.Worker(app, loop=loop, quiet=True, override_logging=False)
    worker.spinner = None
    try:
        worker.execute_from_commandline()
    finally:
        announcement.leave()
        serving.close()


def _use_uvloop() -> None:
    try:
        import uvloop
    except ImportError:
        return  # not on Windows
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
