"""What a Kafka record may carry beside its value: one table for every reader, and how it is produced.

confluent-kafka and aiokafka produce only names in UTF-8; a broker takes any bytes. So a batch is made by hand here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aiokafka import TopicPartition as AiokafkaPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy as BatchBuilder
from hypothesis import strategies as st

from flowpilot.ports.log import Fetched, Headers

RawHeaders = tuple[tuple[bytes, bytes | None], ...]
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)


class Envelope(NamedTuple):
    """All but the value; `timestamp` counts only where the topic takes the producer's."""

    key: bytes | None = b"k"
    headers: RawHeaders = ()
    timestamp: int = 1_700_000_000_000

    @property
    def told(self) -> Headers:
        """The headers as a reader gives them that knows every byte."""
        return tuple((name.decode(errors="surrogateescape"), value or b"") for name, value in self.headers)

    def around(self, value: bytes | None, *, topic: str = "t", partition: int = 0, offset: int = 0) -> Fetched:
        """A record as such a reader gives it."""
        return Fetched(topic, partition, offset, self.timestamp, self.key, value, self.told)


ANY_TIME = {
    "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": str(2**63 - 1),
    "message.timestamp.before.max.ms": str(2**63 - 1),
    "retention.ms": "-1",
}
"""The configuration of a topic that takes any time from a producer."""

LATIN = (b"gr\xf6\xdfe", b"\xe9")
FAR = 2**62

HOSTILE: dict[str, Envelope] = {
    "a name in Latin-1": Envelope(headers=(LATIN,)),
    "names in Latin-1 among good ones": Envelope(headers=((b"a", b"1"), LATIN, (b"b", None), (b"\xff\xfe", b"2"))),
    "a name that ends amid a character": Envelope(headers=((b"caf\xc3", b"1"),)),
    "a name that is a surrogate": Envelope(headers=((b"\xed\xa0\x80", b"1"),)),
    "a name of ours with a byte too many": Envelope(headers=((b"ce_\xff", b"1"), (b"fp-src\xff", b"9"))),
    "a name with NUL": Envelope(headers=((b"a\0b", b"1"),)),
    "a name that is empty": Envelope(headers=((b"", b""), (b"", None))),
    "a name of 40 KB": Envelope(headers=((b"n" * 40_000, b"1"),)),
    "a null value": Envelope(headers=((b"traceparent", None), (b"fp-src", None), (b"a", None))),
    "values that are not text": Envelope(headers=((b"traceparent", b"\xff"), (b"content-type", b"\xff\0"))),
    "numbers that are none": Envelope(
        headers=((b"fp-src", b"-1"), (b"fp-epoch", b"9" * 4_000), (b"fp-hops", b"x"))
    ),
    "one name many times": Envelope(headers=((b"a", b"1"), (b"a", b"2"), (b"fp-src", b"1"), (b"fp-src", b"x"))),
    "10,000 headers": Envelope(headers=tuple((b"h%d" % n, b"x") for n in range(10_000))),
    "10,000 names in Latin-1": Envelope(headers=(LATIN,) * 10_000),
    "a header of 900 KB": Envelope(headers=((b"h", b"x" * 900_000),)),
    "no key": Envelope(key=None),
    "an empty key": Envelope(key=b""),
    "a key that is not UTF-8": Envelope(key=b"\xff\xfe\0"),
    "a key of 900 KB": Envelope(key=b"\xe9" * 900_000),
    "no timestamp": Envelope(timestamp=-1),
    "the epoch": Envelope(timestamp=0),
    "before the epoch": Envelope(timestamp=-1_000),
    "before the year 1": Envelope(timestamp=-FAR),
    "after the year 9999": Envelope(timestamp=FAR),
}
"""By what is strange about it."""


def envelopes() -> st.SearchStrategy[Envelope]:
    """Any envelope: of any bytes, and of bytes that mean something to FlowPilot."""
    ours = [b"traceparent", b"content-type", b"ce_id", b"ce_\xff", b"fp-src", b"fp-epoch", b"fp-bars", b"fp-hops"]
    names = st.binary(max_size=12) | st.sampled_from([*ours, b"fp-prev", b"fp-hash", LATIN[0]])
    values = st.none() | st.binary(max_size=40) | st.sampled_from([b"1", b"-1", b"9" * 5_000, b"\xff"])
    headers = st.lists(st.tuples(names, values), max_size=6).map(tuple)
    times = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-1, 0, 253_402_300_800_000])
    return st.builds(Envelope, st.none() | st.binary(max_size=40), headers, times)


class _Name(bytes):
    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        """What the builder asks a text for."""
        return bytes(self)


def batch(records: Sequence[tuple[Envelope, bytes | None]], compression: int = NONE) -> bytes:
    """The record batch (magic 2) with these, as a producer sends it."""
    builder = BatchBuilder(2, compression, False, -1, -1, -1, 1 << 30)
    for offset, (envelope, value) in enumerate(records):
        headers = [(_Name(name), held) for name, held in envelope.headers]
        builder.append(offset, envelope.timestamp, envelope.key, value, headers)  # type: ignore[arg-type]
    return bytes(builder.build())


async def produce(
    servers: str, topic: str, records: Sequence[tuple[Envelope, bytes | None]], *, compression: int = NONE
) -> list[int]:
    """Produce to partition 0, a batch for each record; the offsets. Raises AssertionError if one is refused."""
    return [await produce_batch(servers, topic, [record], compression) for record in records]


async def produce_batch(
    servers: str, topic: str, records: Sequence[tuple[Envelope, bytes | None]], compression: int = NONE
) -> int:
    """Produce one batch to partition 0; its first offset."""
    client = AIOKafkaClient(bootstrap_servers=servers)
    await client.bootstrap()
    try:
        await client.add_topic(topic)
        await client.force_metadata_update()
        leader = client.cluster.leader_for_partition(AiokafkaPartition(topic, 0))
        assert leader is not None
        request = ProduceRequest(None, -1, 10_000, [(topic, [(0, batch(records, compression))])])
        answered = await client.send(leader, request)
        ((_, [(_, code, offset, *_)]),) = answered.topics
        assert code == 0, f"the broker refused a record with the error {code}"
        return int(offset)
    finally:
        await client.close()
