"""The history as it lands, record by record, with repetitions: it may never contradict itself."""

from __future__ import annotations

from typing import Any

from flowpilot.ports.log import Fetched
from flowpilot_schemas.codec import decode_object
from flowpilot_schemas.history import GENESIS, HEADER_HASH, HEADER_PREV, TERMINAL_EVENTS, chain

_TELLS = {"CompletionIgnored", "CancelIgnored", "StartDeduplicated", "KeyConflict", "RetryRefused"}


class Told:
    """What was told of every run so far."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, int], list[tuple[bytes, bytes, str]]] = {}

    def tell(self, record: Fetched) -> str | None:
        """One more record (S2 and S6 are asserted); the execution, if the record says for the first time that it
        started."""
        value: dict[str, Any] = decode_object(record.value)
        place, headers, data = (value["execution"], value["run"]), dict(record.headers), record.value or b""
        known = self._runs.setdefault(place, [])
        if value["seq"] <= len(known):
            assert known[value["seq"] - 1][0] == data, f"{place} was told in two ways"
            return None
        assert value["seq"] == len(known) + 1, f"a hole in {place}"
        before = known[-1][1] if known else GENESIS
        assert headers[HEADER_PREV] == before
        assert headers[HEADER_HASH] == chain(before, data)
        ended = [kind for _, _, kind in known if kind in TERMINAL_EVENTS]
        assert not ended or value["type"] in _TELLS, f"{place} goes on after {ended}: {value['type']}"
        assert value["type"] != "ExecutionIncident", f"a defect of ours: {value['detail']}"
        known.append((data, headers[HEADER_HASH], value["type"]))
        return str(value["execution"]) if value["type"] == "ExecutionStarted" else None
