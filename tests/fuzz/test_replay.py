"""Every decoder against its seeds, what was once found, and a few mutations: no exception but ours, nothing slow.

`make fuzz` does it with coverage and a million inputs. What it finds becomes a file in `findings/`, named
`<target>--<what it was>`.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fuzz import target as target_module
from tests.fuzz.frame import Given, framed, given
from tests.fuzz.target import Finding, Target
from tests.fuzz.targets import TARGETS
from tests.unit.engine_world import quiet  # noqa: F401

_FINDINGS = Path(__file__).parent / "findings"
_MUTATIONS = 2_000


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_no_input_raises_anything_but_what_is_declared(target: Target) -> None:
    found = [path.read_bytes() for path in sorted(_FINDINGS.glob(f"{target.name}--*"))]
    for data in (*target.seeds, *found, *target.inputs(_MUTATIONS, Random(17))):
        try:
            target.try_one(data)
        except Exception as error:
            raise Finding(f"{target.name} does not take {data!r}") from error


def test_the_replay_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(data: bytes) -> None:
        for record in given(data):
            assert b"forget" not in (record.value or b"")

    event = TARGETS["event"]
    found = [data for data in event.inputs(200, Random(1)) if b"forget" in data]
    with pytest.raises(AssertionError):
        Target("fragile", "", fragile, event.seeds).try_one(found[0])
    monkeypatch.setattr(target_module, "SECONDS", 0.001)
    with pytest.raises(Finding, match="of CPU"):
        Target("slow", "", lambda data: bytes(data * 30_000_000) and None, (b"",)).try_one(b"x")
    monkeypatch.setattr(target_module, "SECONDS", 1.0)
    peaks = iter((100, 400))
    monkeypatch.setattr(target_module, "_peak_mib", lambda: next(peaks))
    with pytest.raises(Finding, match="300 MiB"):
        Target("large", "", lambda data: None, (b"",)).try_one(b"")


def test_an_input_is_records_whatever_its_bytes() -> None:
    records = [Given(b"{}", b"k", (("a", b"="), ("b", b""))), Given(None), Given(b"", None)]
    assert given(framed(records)) == records
    assert given(b"") == [Given(b"")]
    chance = Random(3)
    for _ in range(300):
        assert given(chance.randbytes(40))
