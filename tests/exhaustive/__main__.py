"""`make exhaustive`: everything that can happen to one execution, up to a bound, and every invariant at each turn.

make exhaustive
make exhaustive ARGS="--steps 3 --length 8"       other bounds
make exhaustive ARGS="--fewest 4"                 the DAGs of four steps alone
"""

from __future__ import annotations

import argparse
import sys

from tests.exhaustive.dags import KNOWN
from tests.exhaustive.explore import FULL, INVARIANTS, Bound, Report, explore
from tests.interrupts import interrupted


def main() -> int:
    options = _arguments()
    bound = Bound(options.steps, options.length, options.fewest)
    total = sum(KNOWN[steps] for steps in range(bound.fewest, bound.most + 1))
    report = Report()
    try:
        print(
            f"{total} DAGs of {bound.fewest} to {bound.most} steps, sequences of up to {bound.length} records",
            flush=True,
        )
        explore(bound, most_findings=options.findings, progress=_progress, report=report)
    except KeyboardInterrupt:
        _clear()
        return interrupted(
            f"{report.subjects} workflows done, {report.transitions:,} transitions, "
            f"{len(report.findings)} violations"
        )
    _clear()
    print(summary(report))
    for finding in report.findings:
        print(f"\n{finding}")
    unused = [name for name in INVARIANTS if not report.checks[name]]
    if unused and not report.findings:
        print(f"\nnever in force: {', '.join(unused)}")
    return 1 if report.findings or unused else 0


def summary(report: Report) -> str:
    """The figures, a line each."""
    rate = report.transitions / max(report.cpu_s, 0.001)
    checks = ", ".join(f"{name} {report.checks[name]:,}" for name in INVARIANTS)
    ways = ", ".join(f"{status} {number:,}" for status, number in sorted(report.ways.items()))
    return "\n".join(
        [
            f"DAGs         {report.dags}, as {report.subjects} workflows",
            f"states       {report.states:,} ({ways})",
            f"transitions  {report.transitions:,} in {report.cpu_s:.0f} s of CPU, {rate:,.0f} a second",
            f"checks       {checks}",
            f"violations   {len(report.findings)}",
        ]
    )


def _progress(name: str, report: Report) -> None:
    line = f"{report.subjects:3} {name}: {report.states:,} states, {report.transitions:,} transitions so far"
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line}", end="", flush=True)
    else:
        print(line, flush=True)


def _clear() -> None:
    if sys.stdout.isatty():
        print("\r\x1b[K", end="", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make exhaustive", description="Explore one execution exhaustively.")
    parser.add_argument("--steps", type=int, default=FULL.most, choices=sorted(KNOWN), help="of the largest DAGs")
    parser.add_argument("--fewest", type=int, default=1, choices=sorted(KNOWN), help="steps of the smallest DAGs")
    parser.add_argument("--length", type=int, default=FULL.length, help="records one after another")
    parser.add_argument("--findings", type=int, default=1, help="stop after so many violations")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
