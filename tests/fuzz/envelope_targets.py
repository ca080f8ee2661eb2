"""Record batches as the engine's client reads them.

They are well formed: a broker takes no others, and aiokafka's compiled code reads beyond the end of those.
"""

from __future__ import annotations

from flowpilot_agents.records import LenientRecords
from tests.envelopes import GZIP, HOSTILE, NONE, Envelope
from tests.envelopes import batch as batch_of
from tests.fuzz.frame import Given, framed, given
from tests.fuzz.target import Target, require


def batch(data: bytes) -> None:
    """Records whose headers are named by any bytes, in one batch: each comes back as it was."""
    sent = [
        (Envelope(key=each.key, headers=tuple((held, name.encode()) for name, held in each.headers)), each.value)
        for each in given(data)[:8]
    ]
    fetch = LenientRecords(batch_of(sent, GZIP if len(data) % 2 else NONE))
    found = [record for read in iter(fetch.next_batch, None) for record in read]
    require(len(found) == len(sent), f"{len(found)} records instead of {len(sent)}")
    for record, (envelope, value) in zip(found, sent, strict=True):
        require((record.key, record.value) == (envelope.key, value), "another record")
        require(tuple((name, held or b"") for name, held in record.headers) == envelope.told, "other headers")


def _seeds() -> tuple[bytes, ...]:
    small = [envelope for envelope in HOSTILE.values() if len(str(envelope)) < 500]
    held = [Given(b"v", each.key, tuple(("v", name) for name, _ in each.headers)) for each in small]
    return (*(framed([Given(b"{}"), each, Given(None)]) for each in held), framed(held[:6]))


TARGETS = (Target("batch", "record batches as the engine's client reads them", batch, _seeds(), ("v=caf", "ce_")),)
