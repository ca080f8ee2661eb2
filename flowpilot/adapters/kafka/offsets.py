"""A reader of users' topics: what one partition does not answer keeps no other waiting."""

from __future__ import annotations

import asyncio

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as ConfluentPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # its __all__ lacks it

from flowpilot.adapters.kafka.config import Properties, client_properties
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.ports.log import LogUnavailable
from flowpilot.settings import Settings

_TIMEOUT = 5.0  # seconds
_NOT_KNOWN = frozenset({KafkaError._NOENT, KafkaError._UNKNOWN_PARTITION, KafkaError.NOT_LEADER_FOR_PARTITION})


class KafkaTriggerReader(KafkaReader):
    """See `flowpilot.ports.log.Reader`. Bounds are asked of Kafka's administration, any number at a time; ranges
    are read one after the other, as by every reader."""

    def __init__(self, settings: Settings, properties: Properties) -> None:
        super().__init__(properties, timeout=_TIMEOUT)
        self._admin = AdminClient(client_properties(settings))

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """See the port."""
        low, end = await asyncio.gather(
            self._offset(topic, partition, OffsetSpec.earliest()),  # type: ignore[no-untyped-call]
            self._offset(topic, partition, OffsetSpec.latest()),  # type: ignore[no-untyped-call]
        )
        return low, max(low, end)

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """See the port."""
        # The end first: a record that is written between the two questions must not be stepped over.
        end = await self._offset(topic, partition, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        since = OffsetSpec.for_timestamp(max(timestamp, 0))
        found = await self._offset(topic, partition, since)
        return found if found >= 0 else end

    async def _offset(self, topic: str, partition: int, which: OffsetSpec) -> int:
        try:
            return await self._asked(topic, partition, which)
        except KafkaException as error:
            if error.args[0].code() not in _NOT_KNOWN:
                raise _unavailable(topic, partition, error) from None
        # A partition that was added is not among those that the client knows, and it does not look by itself.
        try:
            await asyncio.to_thread(self._admin.list_topics, topic, _TIMEOUT)
            return await self._asked(topic, partition, which)
        except KafkaException as error:
            raise _unavailable(topic, partition, error) from None

    async def _asked(self, topic: str, partition: int, which: OffsetSpec) -> int:
        asked = {ConfluentPartition(topic, partition): which}
        [answer] = self._admin.list_offsets(asked, request_timeout=_TIMEOUT).values()
        try:
            offset: int = (await asyncio.wait_for(asyncio.wrap_future(answer), _TIMEOUT + 1)).offset
        except TimeoutError:
            raise LogUnavailable(f"{topic}/{partition} did not answer within {_TIMEOUT:.0f} s") from None
        return offset


def _unavailable(topic: str, partition: int, error: KafkaException) -> LogUnavailable:
    reason = error.args[0]
    return LogUnavailable(f"{topic}/{partition}: {reason.name()}: {reason.str()}")
