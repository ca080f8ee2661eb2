"""Workers and engines come and go under load: the work spreads, nothing is lost, nothing long is started again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from flowpilot.local.services import LocalServices
from tests.acceptance.running import prepared_system
from tests.scaling import story
from tests.scaling.__main__ import show
from tests.scaling.scaling import Scaling

pytestmark = pytest.mark.acceptance

SECONDS = 2  # of each phase


@pytest.fixture(scope="module")
def scaling(services: LocalServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scaling]:
    """A system for these tests alone, at work from the first to the last; its figures are printed at the end."""
    folder = tmp_path_factory.mktemp("scaling")
    calls = folder / "scaling-calls"
    calls.touch()
    with prepared_system(services, folder, {"SCALING_CALLS": str(calls)}) as system:
        scaling = Scaling(system, system.settings.topics, calls)
        with scaling.running():
            yield scaling
        show(scaling, Console(width=130))


def test_workers_share_the_work_and_hand_it_over(scaling: Scaling, tmp_path: Path) -> None:
    told = story.workers(scaling, tmp_path, SECONDS)
    assert list(told.one.shares) == ["worker-1"]
    assert list(told.four.shares) == ["worker-1", "worker-2", "worker-3", "worker-4"]
    assert list(told.two.shares) == told.stayed
    # A quarter and a half each, if nobody else used the machine.
    assert min(told.four.shares.values()) > 0.08 * sum(told.four.shares.values()), told.four
    assert min(told.two.shares.values()) > 0.2 * sum(told.two.shares.values()), told.two
    # 4 and 2 times as many.
    assert told.four.rate > 1.6 * told.one.rate
    assert told.two.rate > 1.2 * told.one.rate
    assert sorted(scaling.starts(scaling.held).values()) == [1] * 6
    assert told.statuses == [0, 0]


def test_engines_share_the_partitions_and_take_over(scaling: Scaling) -> None:
    told = story.engines(scaling, SECONDS)
    assert list(told.two.shares) == ["engine-1", "engine-2"]
    assert min(told.two.shares.values()) > 0.1 * sum(told.two.shares.values()), told.two
    for phase in (told.one, told.two, told.other):  # whoever had them, all partitions were folded
        assert phase.partitions == [0, 1, 2, 3], phase
    assert told.statuses == [0]


def test_in_the_end_ledger_history_and_audit_agree(scaling: Scaling) -> None:
    assert scaling.differences() == []
    assert set(scaling.starts(scaling.held).values()) <= {1}  # also by those that took over last
    query = "select worker_id, count(*) from task_execution where status = 'completed' group by worker_id"
    kept = dict(scaling.system.ask(query))
    assert kept == Counter(step.worker_id for step in scaling.steps())
    assert scaling.system.cli("execution", "verify").stdout == ""
