"""`python -m tests.model`: the commit protocol, explored state by state (`make model`).

Each variant that lacks a rule must have a counterexample, and no sound configuration may have one. Exit codes:
0 all as expected, or no Rust toolchain; 1 one is not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.model.configurations import SOUND, WITHOUT_A_RULE, Configuration

SOURCE = Path(__file__).parent / "main.rs"


class Verdict(NamedTuple):
    """What a run says: its first line, and the trace if it found one."""

    configuration: Configuration
    line: str
    trace: str
    seconds: float

    @property
    def expected(self) -> bool:
        """A counterexample where a rule is missing, none elsewhere."""
        found = "VIOLATION after" in self.line or "VIOLATION in walk" in self.line
        ended = found or ": OK, " in self.line or "NO VIOLATION in" in self.line
        return ended and found == self.configuration.fails


def toolchain() -> str | None:
    """The Rust compiler, None without one."""
    return shutil.which("rustc")


def build(rustc: str, folder: Path) -> Path:
    """Compile the checker. Raises `CalledProcessError`."""
    binary = folder / "model"
    subprocess.run([rustc, "--edition", "2021", "-O", str(SOURCE), "-o", str(binary)], check=True)
    return binary


def explore(binary: Path, configuration: Configuration) -> Verdict:
    """Run one configuration to its end."""
    began = time.monotonic()
    command = [str(binary), "name=run", *configuration.switches.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line, _, trace = done.stdout.partition("\n")
    return Verdict(configuration, line or done.stderr.strip()[-300:], trace, time.monotonic() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, run, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="Explore the commit protocol.")
    parser.add_argument("--long", action="store_true", help="all configurations: up to an hour, 10 GB of memory")
    parser.add_argument("--traces", action="store_true", help="print the counterexamples")
    parser.add_argument("--only", metavar="TEXT", default="", help="configurations whose name contains TEXT")
    options = parser.parse_args(arguments)
    rustc = toolchain()
    if rustc is None:
        print("model: skipped, no Rust compiler (rustc) is installed: see https://rustup.rs", file=sys.stderr)
        return 0
    chosen = [
        configuration
        for configuration in [*WITHOUT_A_RULE, *SOUND]
        if (options.long or not configuration.long) and options.only in configuration.name
    ]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        binary = build(rustc, Path(folder))
        for verdict in pool.map(lambda configuration: explore(binary, configuration), chosen):
            mark = "ok  " if verdict.expected else "FAIL"
            print(f"{mark} {verdict.configuration.name}: {verdict.line.partition(': ')[2]}", flush=True)
            if options.traces or not verdict.expected:
                print(verdict.trace, end="", flush=True)
            wrong += not verdict.expected
    print(f"{len(chosen) - wrong} of {len(chosen)} configurations as expected")
    return 1 if wrong or not chosen else 0


if __name__ == "__main__":
    raise SystemExit(main())
