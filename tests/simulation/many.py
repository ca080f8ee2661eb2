"""Seeds on several cores. A module of its own, so that the processes can import what they run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.interrupts import spared
from tests.simulation.plan import Changes
from tests.simulation.simulate import Verdict, run

_AT_ONCE = 10


def of_many(first: int, seeds: int, changes: Changes, processes: int) -> Iterator[list[Verdict]]:
    """The verdicts of all seeds, some at a time, as they come; closed early, nothing goes on.

    Raises `BrokenProcessPool`.
    """
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        try:
            with spared():
                jobs = [
                    pool.submit(_some, start, min(_AT_ONCE, first + seeds - start), changes)
                    for start in range(first, first + seeds, _AT_ONCE)
                ]
            for job in as_completed(jobs):
                yield job.result()
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _some(first: int, count: int, changes: Changes) -> list[Verdict]:
    found = []
    for seed in range(first, first + count):
        verdict = run(seed, changes)
        if not verdict.violations:
            verdict.trace = []
        found.append(verdict)
    return found
