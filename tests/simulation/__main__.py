"""Many seeds on all cores, or one seed again. The exit code is 1 if an invariant was broken."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing

from tests.interrupts import interrupted
from tests.simulation.many import of_many
from tests.simulation.plan import KINDS, Changes
from tests.simulation.shrink import shrink
from tests.simulation.simulate import Verdict, run

_LAST_LINES = 60
# Kinds that show only through others: they are counted where they are drawn.
_DRAWN = {"split", "stale_answer", "slow_network", "skewed_clocks", "leader_clocks", "oversize", "giving_up"}


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    options = _parser().parse_args(arguments)
    changes = Changes(
        without=frozenset(_kinds(options.without) or ()),
        only=_kinds(options.only),
        executions=options.executions,
        length=options.length,
        engines=options.engines,
        workers=options.workers,
        partitions=options.partitions,
    )
    if options.seed is not None:
        try:
            return _one(options.seed, changes, options.lines, shrinking=not options.as_it_is)
        except KeyboardInterrupt:
            return interrupted(f"seed {options.seed} has no verdict")
    return _many(options.first, options.seeds, changes, options.processes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many (1,000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--seed", type=int, help="only this one; if it fails it is shrunk")
    parser.add_argument("--as-it-is", action="store_true", help="do not shrink")
    parser.add_argument("--lines", type=int, default=_LAST_LINES, help="of the trace, with --seed (60)")
    parser.add_argument("--without", help=f"kinds of faults to leave out, of {', '.join(KINDS)}")
    parser.add_argument("--only", help="the kinds of faults there are, whatever the seed draws; or none")
    for name in ("executions", "engines", "workers", "partitions"):
        parser.add_argument(f"--{name}", type=int, help="so many")
    parser.add_argument("--length", type=float, help="simulated seconds until the faults end")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="so many at once (one a core)")
    return parser


def _kinds(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    found = frozenset(text.split(",")) - {"none", ""}
    if unknown := found - set(KINDS):
        raise SystemExit(f"unknown kinds of faults: {', '.join(sorted(unknown))}")
    return found


def _one(seed: int, changes: Changes, lines: int, *, shrinking: bool) -> int:
    verdict = run(seed, changes)
    if verdict.violations and shrinking:
        print(f"seed {seed} fails; shrinking", flush=True)
        verdict = shrink(verdict, lambda line: print(line, flush=True))
    print("\n".join(verdict.trace[len(verdict.trace) - lines :]))
    print(describe(verdict))
    return 1 if verdict.violations else 0


def describe(verdict: Verdict) -> str:
    """A verdict for people: what was violated, and how to see it again."""
    lines = [
        f"seed {verdict.seed}: {verdict.executions} runs of executions, {verdict.events} events, "
        f"{verdict.simulated:.0f} s simulated, quiet after {verdict.took:.1f} s, {verdict.cpu:.2f} s of CPU",
        f"kinds: {', '.join(sorted(verdict.plan.kinds)) or 'none'}",
        f"trace: {verdict.trace_hash}",
    ]
    lines += [f"{name} VIOLATED: {sentence}" for name, sentence in verdict.violations[:6]]
    if verdict.violations:
        lines.append(f"repeat: {verdict.repeat()}")
    return "\n".join(lines)


def _many(first: int, seeds: int, changes: Changes, processes: int) -> int:
    began, done = time.monotonic(), 0
    faults: Counter[str] = Counter()
    executions = events = 0
    simulated = cpu = longest = 0.0
    slowest = first
    failing: list[Verdict] = []
    try:
        with closing(of_many(first, seeds, changes, processes)) as found:
            for verdicts in found:
                for verdict in verdicts:
                    done += 1
                    faults.update(verdict.faults)
                    faults.update(kind for kind in verdict.plan.kinds if kind in _DRAWN)
                    executions, events = executions + verdict.executions, events + verdict.events
                    simulated, cpu = simulated + verdict.simulated, cpu + verdict.cpu
                    if verdict.took > longest and not verdict.violations:
                        longest, slowest = verdict.took, verdict.seed
                    if verdict.violations:
                        failing.append(verdict)
                        _clear()
                        print(f"seed {verdict.seed}: {verdict.violations[0]}", flush=True)
                _progress(done, seeds, began, len(failing))
    except KeyboardInterrupt:
        _clear()
        return interrupted(f"{done} of {seeds} seeds done, {len(failing)} failing")
    took = time.monotonic() - began
    _clear()
    print(f"{done} seeds in {took:.0f} s, {done * 60 / took:.0f} a minute, {cpu / max(done, 1):.2f} s of CPU each")
    print(f"{simulated / 3600:.1f} simulated hours, {executions} runs of executions, {events} events")
    print(f"the longest T: {longest:.1f} s (seed {slowest})")
    print("faults: " + ", ".join(f"{kind} {faults[kind]}" for kind in (*KINDS, "ended_itself")))
    return _verdict(failing, faults, changes, seeds)


def _verdict(failing: list[Verdict], faults: Counter[str], changes: Changes, seeds: int) -> int:
    expected = set(KINDS if changes.only is None else changes.only) - changes.without
    missing = sorted(kind for kind in expected if not faults[kind])
    for verdict in sorted(failing, key=lambda each: each.seed)[:5]:
        print()
        print("\n".join(verdict.trace[-20:]))
        print(describe(verdict))
    if missing and seeds >= 200:
        print(f"these faults never occurred, so the calibration is wrong: {', '.join(missing)}")
    print(f"violations: {len(failing)}")
    return 1 if failing or (missing and seeds >= 200) else 0


def _progress(done: int, seeds: int, began: float, failing: int) -> None:
    rate = done * 60 / max(time.monotonic() - began, 0.001)
    if not sys.stdout.isatty():
        if done % 500 == 0:
            print(f"{done} of {seeds} seeds, {rate:.0f} a minute, {failing} failing", flush=True)
    else:
        print(f"\r{done} of {seeds} seeds, {rate:.0f} a minute, {failing} failing ", end="", flush=True)


def _clear() -> None:
    if sys.stdout.isatty():
        print("\r" + " " * 60 + "\r", end="")


if __name__ == "__main__":
    sys.exit(main())
