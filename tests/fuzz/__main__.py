"""`make fuzz`: every decoder against inputs that coverage guides; a table at the end, and 1 if anything was found.

python -m tests.fuzz --runs 1000000            all targets, two at a time
python -m tests.fuzz --only trigger event      some
python -m tests.fuzz --repeat trigger FILE     one input again, without atheris
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import TARGETS
from tests.interrupts import interrupted, spared

_DIRECTORY = Path(".flowpilot/fuzz")
_LINE = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+)")
_EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")
_EVERY = 10.0
_ONE = [sys.executable, "-m", "tests.fuzz.one"]


@dataclass
class Run:
    """One target's process; what it says is in `log`."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    known: set[Path]
    began: float
    begun: float | None = None  # when the imports were over and inputs came
    seconds: float = 0.0
    code: int | None = None

    @property
    def folder(self) -> Path:
        """Where the inputs that are findings lie."""
        return self.log.parent / "found"

    def figures(self) -> tuple[int, int]:
        """Inputs so far, and the edges that they reached."""
        text = self.log.read_text("utf-8", "replace")
        lines = _LINE.findall(text)
        inputs, edges = (int(lines[-1][0]), int(lines[-1][1])) if lines else (0, 0)
        executed = _EXECUTED.findall(text)
        return (int(executed[-1]) if executed else inputs), edges

    def found(self) -> list[Path]:
        """The findings of this run."""
        return sorted(set(self.folder.glob("*")) - self.known)

    def is_over(self) -> bool:
        """Whether its process has ended."""
        self.code = self.process.poll()
        if self.begun is None and b"INITED" in self.log.read_bytes():
            self.begun = time.monotonic()
        self.seconds = time.monotonic() - (self.begun or self.began)
        return self.code is not None


def begin(name: str, runs: int, seed: int, directory: Path) -> Run:
    """Start one target's process."""
    folder = directory / name
    (folder / "found").mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    command = [*_ONE, name, str(runs), str(seed), str(folder)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    return Run(name, process, log, set((folder / "found").glob("*")), time.monotonic())


class Interrupted(Exception):
    """Ctrl-C: `runs` are those that were over or under way."""

    def __init__(self, runs: list[Run]) -> None:
        super().__init__()
        self.runs = runs


def campaign(names: list[str], runs: int, seed: int, at_once: int, directory: Path) -> list[Run]:
    """All targets, `at_once` at a time; progress goes to stderr. Raises `Interrupted`."""
    waiting, running, over = deque(names), list[Run](), list[Run]()
    said = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                with spared():
                    running.append(begin(waiting.popleft(), runs, seed, directory))
            time.sleep(0.2)
            for run in [run for run in running if run.is_over()]:
                running.remove(run)
                over.append(run)
                print(_row(run), file=sys.stderr, flush=True)
            if time.monotonic() - said >= _EVERY:
                said = time.monotonic()
                for run in running:
                    inputs, edges = run.figures()
                    print(
                        f"… {run.name}: {inputs:,} of {runs:,} inputs, {edges:,} edges", file=sys.stderr, flush=True
                    )
    except KeyboardInterrupt:
        raise Interrupted(over + running) from None
    finally:
        for run in running:
            run.process.kill()
            run.process.wait()
    return sorted(over, key=lambda run: names.index(run.name))


def _row(run: Run) -> str:
    inputs, edges = run.figures()
    state = "" if run.code in (0, 77) else f"  (ended with {run.code})"
    rate = inputs / max(run.seconds, 0.001)
    return f"{run.name:<12}{inputs:>12,}{rate:>12,.0f}{edges:>10,}{len(run.found()):>10}{state}"


def report(runs: list[Run]) -> int:
    """Print the table and what to do about findings; the exit code."""
    print(f"{'target':<12}{'inputs':>12}{'inputs/s':>12}{'edges':>10}{'findings':>10}")
    for run in runs:
        print(_row(run))
    bad = [run for run in runs if run.code or run.found()]
    for run in bad:
        for path in run.found():
            print(f"\n{run.name}: repeat it with  python -m tests.fuzz --repeat {run.name} {path}")
        if not run.found():
            print(f"\n{run.name} ended with {run.code}; see {run.log}")
    return 1 if bad else 0


def repeat(name: str, path: Path) -> int:
    """Run one input and show what it raises."""
    TARGETS[name].try_one(path.read_bytes())
    print(f"{name} takes {path}: no finding")
    return 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz every decoder.")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what chance begins with")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--directory", type=Path, default=_DIRECTORY, help="where corpus, findings and logs go")
    parser.add_argument("--repeat", nargs=2, metavar=("TARGET", "FILE"), help="run one input again")
    asked = parser.parse_args()
    if asked.repeat:
        return repeat(asked.repeat[0], Path(asked.repeat[1]))
    print(f"seed {asked.seed}", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and with it the targets' processes
    try:
        return report(campaign(asked.only, asked.runs, asked.seed, asked.at_once, asked.directory))
    except Interrupted as early:
        inputs, findings = sum(run.figures()[0] for run in early.runs), sum(len(run.found()) for run in early.runs)
        over = sum(run.code is not None for run in early.runs)
        return interrupted(
            f"{over} of {len(asked.only)} targets done, {inputs:,} inputs, {findings} findings; "
            f"corpus, findings and logs stay in {asked.directory}"
        )


if __name__ == "__main__":
    sys.exit(main())
