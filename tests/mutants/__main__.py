"""`make mutants`: plants each defect and shows which layers of tests find it; 1 if one of them does not.

make mutants                                       each defect against the layers that have to find it
make mutants ARGS="--all"                          … and against all others that run its code
make mutants ARGS="--only no_gap_check --layers storm unit"
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

from tests.interrupts import Children, interrupted
from tests.mutants.all import MUTANTS, NOTHING
from tests.mutants.catalogue import LAYERS, Mutant
from tests.mutants.layers import BY_ROOM, applies

# The seconds after which a process is not waited for: a machine may be busy, and servers may be slow.
_PATIENCE = 3_600
_BASELINE = 5.0
_OUT_OF_CPU = getattr(signal, "SIGXCPU", 24)
_INVARIANT = re.compile(r"\b([SRL]\d\d?)\b")


class Result(NamedTuple):
    """What a layer said of a defect."""

    mutant: Mutant
    layer: str
    how: str | None
    seconds: float
    error: str | None = None

    @property
    def expected(self) -> bool:
        """Whether the layer has to find it."""
        return self.layer in self.mutant.layers

    @property
    def is_wrong(self) -> bool:
        """Whether it was to be found and was not, or the layer did not run."""
        return self.error is not None or (self.expected and self.how is None)


_children = Children()


def try_one(mutant: Mutant, layer: str, seconds: float) -> Result:
    """One defect against one layer, in a process of its own."""
    command = [sys.executable, "-m", "tests.mutants.one", mutant.name, layer, mutant.room, str(seconds)]
    began = time.monotonic()
    try:
        done = _children.run(command, _PATIENCE)
    except subprocess.TimeoutExpired:
        return Result(mutant, layer, None, time.monotonic() - began, f"no answer after {_PATIENCE} s")
    try:
        said = json.loads(done.stdout.strip().splitlines()[-1])
        return Result(mutant, layer, said["how"], said["seconds"], said["error"])
    except (ValueError, IndexError, KeyError, TypeError):
        # The process was ended from within, as a doubt ends one: that is what the defect leads to.
        told = (done.stderr or done.stdout).strip().splitlines()
        last = told[-1] if told else ""
        if done.returncode == 70:
            return Result(mutant, layer, f"ends its process: {last}", time.monotonic() - began)
        if done.returncode == -_OUT_OF_CPU:
            return Result(mutant, layer, "does not end", time.monotonic() - began)
        return Result(mutant, layer, None, time.monotonic() - began, f"exit {done.returncode}: {last}")


class Interrupted(Exception):
    """Ctrl-C, after `done` of `all` tries."""

    def __init__(self, done: int, all: int) -> None:
        super().__init__(f"{done} of {all}")


def try_all(work: Sequence[tuple[Mutant, str]], seconds: float, at_once: int) -> list[Result]:
    """All of `work`, in its order; each is told as it ends. Raises `Interrupted`."""
    done: list[Result] = []

    def one(place: tuple[Mutant, str]) -> Result:
        result = try_one(*place, seconds)
        if not _children.stopping.is_set():
            done.append(result)
            said = f"{_mark(result)} {result.mutant.name} / {result.layer}, {_how(result)}"
            print(said, file=sys.stderr, flush=True)
        return result

    with ThreadPoolExecutor(at_once) as pool:
        tries = [pool.submit(one, place) for place in work]
        try:
            return [each.result() for each in tries]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            _children.stop()
            raise Interrupted(len(done), len(work)) from None


def _mark(result: Result) -> str:
    if result.error is not None:
        return "error   "
    return "survives" if result.how is None else "found   "


def _how(result: Result) -> str:
    text = " ".join((result.error or result.how or "nothing seen").split())
    return f"{result.seconds:.0f} s: {text[:160]}"


def report(results: Sequence[Result]) -> int:
    """Print the table, how each defect was found, and what is wrong; the exit code."""
    by_mutant: dict[str, dict[str, Result]] = {}
    for result in results:
        by_mutant.setdefault(result.mutant.name, {})[result.layer] = result
    layers = [layer for layer in LAYERS if any(layer in found for found in by_mutant.values())]
    print("| mutant | breaks | " + " | ".join(layers) + " |")
    print("|---|---|" + "---|" * len(layers))
    for name, found in by_mutant.items():
        cells = [_cell(found.get(layer)) for layer in layers]
        print(f"| {name} | {next(iter(found.values())).mutant.breaks} | " + " | ".join(cells) + " |")
    killed = [name for name, found in by_mutant.items() if any(each.how is not None for each in found.values())]
    counts = [f"{layer} {sum(r.layer == layer and r.how is not None for r in results)}" for layer in layers]
    print(f"\n{len(killed)} of {len(by_mutant)} found; by layer: {', '.join(counts)}")
    survivors = [name for name in by_mutant if name not in killed]
    for name in survivors:
        print(f"SURVIVES: {name}: {next(iter(by_mutant[name].values())).mutant.sentence}")
    wrong = [result for result in results if result.is_wrong]
    for result in wrong:
        print(
            f"WRONG: {result.mutant.name} / {result.layer}: {result.error or 'not found by the layer that has to'}"
        )
    return 1 if survivors or wrong else 0


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    if result.error is not None:
        return "error"
    if result.how is None:
        return "–"
    named = _INVARIANT.match(result.how.partition(": ")[2] or result.how) or _INVARIANT.match(result.how)
    return f"{named[1] if named else 'found'} {result.seconds:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    known = {**MUTANTS, NOTHING.name: NOTHING}
    parser = argparse.ArgumentParser(prog="make mutants", description="Plant defects and see who finds them.")
    parser.add_argument("--only", nargs="+", choices=known, metavar="MUTANT", default=list(MUTANTS))
    parser.add_argument("--layers", nargs="+", choices=LAYERS, metavar="LAYER", default=list(LAYERS))
    parser.add_argument("--all", action="store_true", help="also the layers that need not find it")
    parser.add_argument("--seconds", type=float, default=45.0, help="CPU time that a layer which goes by seeds has")
    parser.add_argument("--no-baseline", action="store_true", help="do not first run the layers without a defect")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="processes")
    asked = parser.parse_args(arguments)
    work = [
        (known[name], layer)
        for name in asked.only
        for layer in asked.layers
        if applies(layer, known[name].room) and (asked.all or layer in known[name].layers)
    ]
    what = "layers tried without a defect"
    try:
        if not asked.no_baseline and not baseline(work, asked.at_once):
            return 1
        what = "defects tried against a layer"
        return report(try_all(work, asked.seconds, asked.at_once))
    except Interrupted as early:
        return interrupted(f"{early} {what}")


def baseline(work: Sequence[tuple[Mutant, str]], at_once: int) -> bool:
    """Whether the tests that are to find something find nothing where nothing is planted."""
    rooms = {(layer, mutant.room if layer in BY_ROOM else NOTHING.room) for mutant, layer in work}
    sound = [(replace(NOTHING, room=room), layer) for layer, room in sorted(rooms)]
    wrong = [result for result in try_all(sound, _BASELINE, at_once) if result.how is not None or result.error]
    for result in wrong:
        print(f"WRONG: {result.layer} of {result.mutant.room} without any defect: {result.error or result.how}")
    return not wrong


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
