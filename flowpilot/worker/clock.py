"""The broker's time as a worker knows it: what `not_after` is judged by, whatever this machine's clock shows.

Every record that the worker produces comes back with the time at which the broker appended it (topics have
`message.timestamp.type=LogAppendTime`), and at that moment the broker's clock shows no less. From then on the
monotonic clock counts on, which no setting of the clock moves. So the estimate is late by no more than the way back
of an acknowledgement, and never early: a step is dropped only if the broker's time has passed its `not_after`.
Records that are read say nothing of the present, however new they look: a worker may lag behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from flowpilot.ports import metrics
from flowpilot.ports.log import Delivery, Producer, Record
from flowpilot.ports.meter import Meter

_log = structlog.get_logger("flowpilot.worker")
FAR_OFF_MS = 60_000


class BrokerClock:
    """`local`: this machine's clock, in ms since the epoch; it is only compared, and judges nothing."""

    def __init__(self, local: Callable[[], int], meter: Meter) -> None:
        self._local, self._meter = local, meter
        self._anchor: tuple[int, float] | None = None
        self.is_far_off = False
        """Whether this machine's clock differs from the broker's by more than a minute."""

    def is_past(self, moment: int) -> bool:
        """Whether the broker's time is surely later than `moment` (ms). Before anything was produced: never."""
        if self._anchor is None:
            return False
        timestamp, since = self._anchor
        return timestamp + (time.monotonic() - since) * 1_000 > moment

    def sending(self) -> int:
        """Call it before something is produced, and give its result to `produced`."""
        return self._local()

    def produced(self, sending: int, deliveries: Sequence[Delivery]) -> None:
        """The deliveries of what was produced since `sending`, just now."""
        timestamp = max([each.timestamp for each in deliveries if each.timestamp is not None], default=None)
        if timestamp is None:
            return
        self._anchor = (timestamp, time.monotonic())
        # The record was appended between the two looks at this machine's clock: the truth lies between, too.
        least, most = sending - timestamp, self._local() - timestamp
        self._meter.set(metrics.WORKER_CLOCK_SKEW, (least + most) / 2_000)
        is_far_off = least > FAR_OFF_MS or most < -FAR_OFF_MS
        if is_far_off and not self.is_far_off:
            ahead = round((least if least > 0 else most) / 1_000)
            _log.warning(
                "this machine's clock differs from the broker's by more than a minute: set it, as by NTP; steps "
                "are judged by the broker's time",
                seconds_ahead=ahead,
            )
        elif self.is_far_off and not is_far_off:
            _log.warning("this machine's clock agrees with the broker's again")
        self.is_far_off = is_far_off


class TimedProducer:
    """A producer whose deliveries set the clock."""

    def __init__(self, producer: Producer, clock: BrokerClock) -> None:
        self._producer, self._clock = producer, clock

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        """See `flowpilot.ports.log.Producer`."""
        sending = self._clock.sending()
        deliveries = await self._producer.send(records)
        self._clock.produced(sending, deliveries)
        return deliveries
