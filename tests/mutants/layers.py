"""The layers of tests, each as a function that runs after a defect is planted and says how it found it.

A layer gives None if it saw nothing within its time, which is CPU time: a busy machine finds no less. Those of
`tests.exhaustive` and `tests.simulation` are there where these packages are.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import structlog

_UNIT = {
    "engine": ["tests/unit/test_engine_*.py"],
    "core": ["tests/unit/test_core_*.py", "tests/unit/test_engine_*.py"],
    "router": ["tests/unit/test_router_*.py"],
    "worker": ["tests/unit/test_worker*.py"],
    "audit": ["tests/unit/test_audit_*.py"],
}
_INTEGRATION = {
    "audit": [
        "tests/contract/test_audit_*.py",
        "tests/integration/test_audit_store.py",
        "tests/integration/test_audit_writer.py",
    ],
    "agent": ["tests/integration/test_faust_execution.py", "tests/integration/test_faust_binding.py"],
}
_LAWS = ["tests/property/test_laws.py", "tests/property/test_edges.py", "tests/property/test_lineage.py"]

BY_ROOM = ("unit", "integration")
"""The layers whose tests depend on the room."""

Layer = Callable[[str, float], str | None]
"""`layer(room, seconds)`: run what concerns the room, for about so long; how the defect was found, or None."""


class NotRun(Exception):
    """The layer could not say anything: its tests did not begin."""


def unit(room: str, seconds: float) -> str | None:
    """The unit tests of the room."""
    return _pytest(_UNIT[room])


def laws(room: str, seconds: float) -> str | None:
    """The laws of the core, under Hypothesis."""
    return _pytest(_LAWS, "--hypothesis-seed=0")


def integration(room: str, seconds: float) -> str | None:
    """The room's tests on a real Kafka or PostgreSQL."""
    return _pytest(_INTEGRATION[room])


def storm(room: str, seconds: float) -> str | None:
    """Seeds of the storm, one after another."""
    from tests.property.storm import storm as blow

    return _stormy(blow, seconds)


def releases(room: str, seconds: float) -> str | None:
    """The same with engines of several releases."""
    from tests.property.releases import releases as blow

    return _stormy(blow, seconds)


def _stormy(blow: Callable[[int], list[str]], seconds: float) -> str | None:
    from flowpilot.core import notices
    from flowpilot.engine import trial

    with pytest.MonkeyPatch.context() as patch:
        # As in tests/property/test_protocol.py: no record is the reason of the storm's crashes.
        patch.setattr(trial, "CRASHES", 10**9)
        patch.setattr(notices, "SHORTEST_FAMILY_MS", 0)
        return _seeds(seconds, lambda seed: next((f"{_named(found)}: {found}" for found in blow(seed)), None))


# What the storm says begins with one of these, the first that fits.
_OF_THE_STORM = {
    "told before its state": "S8",
    "the chain is broken": "S6",
    "heads": "S6",
    "history (": "S6",
    "not over in the end": "L1",
    "nobody finished": "L1",
    "partition ": "R1",
    "no dead letter": "S11",
    "a dead letter too many": "S11",
    "b'": "L1",  # … stays for ever, or was removed too early
}


def _named(found: str) -> str:
    """The invariant that a difference from the undisturbed run violates."""
    return next((name for words, name in _OF_THE_STORM.items() if found.startswith(words)), "S3")


def exhaustive(room: str, seconds: float) -> str | None:
    """Everything that can happen to one execution, within small bounds."""
    from tests.exhaustive.explore import Bound, explore

    began = time.process_time()
    for bound in (Bound(2, 5), Bound(3, 5, fewest=3), Bound(2, 7), Bound(4, 5, fewest=4)):
        report = explore(bound)
        if report.findings:
            found = report.findings[0]
            return f"{found.invariant}: {found.detail}"
        if time.process_time() - began > seconds:
            break
    return None


def simulation(room: str, seconds: float) -> str | None:
    """Seeds of the simulation of the whole pipeline."""
    from tests.simulation.simulate import run

    def first(seed: int) -> str | None:
        violations = run(seed).violations
        return f"{violations[0][0]}: {violations[0][1]}" if violations else None

    return _seeds(seconds, first)


LAYERS: dict[str, Layer] = {
    "unit": unit,
    "laws": laws,
    "storm": storm,
    "releases": releases,
    "exhaustive": exhaustive,
    "simulation": simulation,
    "integration": integration,
}


def applies(layer: str, room: str) -> bool:
    """Whether the layer is there and runs code of that room."""
    match layer:
        case "unit":
            return room in _UNIT
        case "integration":
            return room in _INTEGRATION
        case "laws":
            return room == "core"
        case "storm" | "releases":
            return room in ("core", "engine")
        case "exhaustive":
            return room == "core" and _is_there("tests.exhaustive.explore")
        case _:
            return _is_there("tests.simulation.simulate")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _seeds(seconds: float, look: Callable[[int], str | None]) -> str | None:
    began = time.process_time()
    for seed in count():
        found = look(seed)
        if found is not None:
            return f"seed {seed}: {found}"
        if time.process_time() - began > seconds:
            return None
    return None


class _First:
    """The first test that failed, and why."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self.ran = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.ran += report.when == "call"
        if report.failed and self.failed is None:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed = f"{report.nodeid.rpartition('/')[2]}: {crash.message if crash else report.when}"


def _pytest(patterns: list[str], *options: str) -> str | None:
    import glob

    first = _First()
    files = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
    fixed = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--timeout=120"]
    code = pytest.main([*fixed, *options, *files], plugins=[first])
    structlog.reset_defaults()
    if first.failed is not None:
        return first.failed
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not first.ran:
        raise NotRun(f"pytest ended with {code!r}")
    return None
