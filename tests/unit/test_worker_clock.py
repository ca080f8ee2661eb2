"""`not_after` is judged by the broker's time: a clock that is set wrongly drops no step, and is reported."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from flowpilot.ports import metrics
from flowpilot.ports.log import Delivery, LogUnavailable, Record
from flowpilot.ports.meter import OFF
from flowpilot.worker.clock import FAR_OFF_MS, BrokerClock, TimedProducer
from flowpilot_schemas.history import iso
from tests.unit.test_metrics import Seen
from tests.unit.test_worker_trust import calls, clinic, run
from tests.unit.worker_rig import TOPICS, Rig
from tests.waiting import eventually_async

DAY = 86_400_000
WARNING = "this machine's clock differs from the broker's by more than a minute"


def now() -> int:
    return time.time_ns() // 1_000_000


@pytest.mark.parametrize("skew", [-400 * DAY, -2 * FAR_OFF_MS, 0, 2 * FAR_OFF_MS, 400 * DAY])
def test_a_wrong_clock_neither_drops_nor_keeps_steps(skew: int) -> None:
    async def scenario() -> None:
        rig = Rig(clinic)
        # Both were there before the worker: it has produced nothing yet when it meets them.
        rig.ready("create", input={"patient_id": "late"}, not_after=iso(now() - 1))
        wanted = rig.ready("create", input={"patient_id": "wanted"}, not_after=iso(now() + 60_000))
        seen = Seen()
        with capture_logs() as logs:
            async with rig.serving(clock=lambda: now() + skew, meter=seen.meter):
                await eventually_async(lambda: rig.answer(wanted, "completed"))
        assert calls == ["wanted"]
        assert {answer["task_id"] for answer in rig.answers()} == {wanted}
        assert seen.value(metrics.WORKER_DROPPED, "not_after") == 1
        assert (seen.value(metrics.WORKER_CLOCK_SKEW) or 0) == pytest.approx(skew / 1_000, abs=5)
        warned = [line for line in logs if line["event"].startswith(WARNING)]
        assert len(warned) == (skew != 0)
        assert all(abs(line["seconds_ahead"] * 1_000 - skew) < 5_000 for line in warned)

    run(scenario())


def test_without_the_brokers_time_nothing_is_dropped() -> None:
    """The members topic may be missing, or nothing answers: steps are run rather than judged by this clock."""

    async def scenario() -> None:
        rig = Rig(clinic)
        rig.log.delete_topic(TOPICS.members)
        task = rig.ready("create", input={"patient_id": "p"}, not_after=iso(now() + 60_000))
        async with rig.serving(clock=lambda: now() + 400 * DAY):
            await eventually_async(lambda: rig.answer(task, "completed"))

    run(scenario())


class Broker:
    """Acknowledges with its own time, after `takes` ms of the worker's."""

    def __init__(self) -> None:
        self.local = self.time = 1_000_000_000_000
        self.takes = 0
        self.answers = True

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        self.local += self.takes
        if not self.answers:
            raise LogUnavailable("away")
        return [Delivery(0, 0, timestamp=self.time), Delivery(-1, -1, "refused")]


def test_a_change_is_reported_once_each_way() -> None:
    broker = Broker()
    clock = BrokerClock(lambda: broker.local, OFF)
    producer = TimedProducer(broker, clock)
    said: list[str] = []
    for ahead in (0, FAR_OFF_MS, FAR_OFF_MS + 1, 10 * FAR_OFF_MS, 0, -FAR_OFF_MS - 1, -FAR_OFF_MS - 2, 1):
        broker.local = broker.time + ahead
        with capture_logs() as logs:
            asyncio.run(producer.send([]))
        said.append("".join("off" if line["event"].startswith(WARNING) else "on" for line in logs))
    assert said == ["", "", "off", "", "on", "off", "", "on"]


def test_a_slow_acknowledgement_is_no_skew() -> None:
    """The append lies somewhere between the two looks: only what is certain is reported."""
    broker = Broker()
    broker.takes = 10 * FAR_OFF_MS
    clock = BrokerClock(lambda: broker.local, OFF)
    with capture_logs() as logs:
        asyncio.run(TimedProducer(broker, clock).send([]))
    assert logs == []
    assert not clock.is_far_off


def test_what_is_not_acknowledged_sets_no_clock() -> None:
    broker = Broker()
    broker.answers = False
    clock = BrokerClock(lambda: broker.local, OFF)
    with pytest.raises(LogUnavailable):
        asyncio.run(TimedProducer(broker, clock).send([]))
    clock.produced(0, [Delivery(0, 1), Delivery(-1, -1, "refused")])  # the producer's own time is not the broker's
    assert not clock.is_past(0)


@given(
    broker=st.integers(0, 2**42),
    skew=st.integers(-(2**40), 2**40),
    elapsed=st.integers(0, 10**9),
    left=st.integers(-(10**9), 10**9),
)
def test_the_estimate_is_never_early(broker: int, skew: int, elapsed: int, left: int) -> None:
    """Whatever the local clock shows, and however it is moved: past is what the broker's time has passed."""
    monotonic = 5.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowpilot.worker.clock.time.monotonic", lambda: monotonic)
        clock = BrokerClock(lambda: broker + skew, OFF)
        assert not clock.is_past(0)
        clock.produced(clock.sending(), [Delivery(0, 0, timestamp=broker)])
        monotonic += elapsed / 1_000
        passed: Any = clock.is_past(broker + elapsed - left)
        if abs(left) > 1:  # rounding of the monotonic clock
            assert passed is (left > 0)
