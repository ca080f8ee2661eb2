"""The two stories that the acceptance test checks and `make scale` prints."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.scaling.scaling import CONCURRENCY, Phase, Scaling


class Workers(NamedTuple):
    """1, then 4, then 2 workers; `stayed`: these two."""

    one: Phase
    four: Phase
    two: Phase
    stayed: list[str]
    statuses: list[int | None]


class Engines(NamedTuple):
    """1, then 2 engines, then the newcomer alone."""

    one: Phase
    two: Phase
    other: Phase
    statuses: list[int | None]


def workers(scaling: Scaling, folder: Path, seconds: float) -> Workers:
    """Long handlers run while workers join and leave. A phase lasts about `seconds`, where nothing lacks."""
    scaling.wait_for_workers(1)
    scaling.wait_for_steps(1)
    one = scaling.measure("1 worker", round(20 * seconds))

    joining = ["worker-2", "worker-3", "worker-4"]
    scaling.hold(folder / "joined", 2)
    with scaling.change("1 → 4 workers", joining):
        scaling.start(dict.fromkeys(joining, "worker"))
        scaling.wait_for_workers(4)
    (folder / "joined").touch()
    four = scaling.measure("4 workers", round(80 * seconds))

    # As many as one worker can have. Those leave that have most of them.
    names = scaling.holders(scaling.hold(folder / "left", CONCURRENCY))
    leaving = [*names, *(name for name in ("worker-1", *joining) if name not in names)][:2]

    def meanwhile() -> None:
        scaling.wait_for_steps(10)
        (folder / "left").touch()

    with scaling.change("4 → 2 workers"):
        statuses = scaling.leave(leaving, meanwhile)
        scaling.wait_for_workers(2)
    two = scaling.measure("2 workers", round(40 * seconds))
    return Workers(one, four, two, sorted({"worker-1", *joining} - set(leaving)), statuses)


def engines(scaling: Scaling, seconds: float) -> Engines:
    """The engine that was there first is the one that leaves. A phase lasts about `seconds`."""
    count = round(20 * seconds)
    [first] = scaling.wait_for_engines(1)
    one = scaling.measure("1 engine", count, dict.fromkeys(range(4), "engine-1"))
    with scaling.change("1 → 2 engines", ["engine-2"]):
        scaling.start({"engine-2": "engine"})
        parts = scaling.wait_for_engines(2)
        scaling.wait_for_steps(1)
    owners = {
        number: "engine-1" if member == first else "engine-2" for member, part in parts.items() for number in part
    }
    two = scaling.measure("2 engines", count, owners)
    with scaling.change("2 → 1 engines"):
        statuses = scaling.leave(["engine-1"])
        scaling.wait_for_engines(1)
        scaling.wait_for_steps(1)
    other = scaling.measure("the other engine", count, dict.fromkeys(range(4), "engine-2"))
    return Engines(one, two, other, statuses)
