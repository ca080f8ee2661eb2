"""A chain of three steps survives one kill -9 of each role, under a modest load, and the audit is exact."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from flowpilot.local.services import LocalServices
from tests.acceptance.running import PATIENCE, ROOT, RunningSystem, running_system
from tests.chaos import kill_loop, workflows
from tests.chaos.history import HistoryWatcher

pytestmark = pytest.mark.acceptance

RATE = 30  # executions a second; each lives for more than a second
LIVE = 20  # what makes a kill count


@pytest.fixture
def chains(services: LocalServices, tmp_path: Path) -> Iterator[RunningSystem]:
    """A system for the chain alone: everything in its history and audit is compared."""
    with running_system(services, tmp_path, ["tests.chaos.workflows:chain"], {}, concurrency=64) as system:
        system.create_topic(workflows.TOPIC)
        try:
            yield system
        finally:
            system.delete_topic(workflows.TOPIC)


def test_a_chain_survives_a_kill_of_each_role(chains: RunningSystem, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    watcher = HistoryWatcher(chains.settings.bootstrap_servers, chains.settings.topics.history)
    script = ROOT / "tests/chaos/publisher.py"
    publisher = subprocess.Popen(
        [sys.executable, str(script), chains.settings.bootstrap_servers, workflows.TOPIC, str(ledger), str(RATE)]
    )
    try:
        for role in ("engine", "worker-1", "router", "audit"):
            kill_loop.kill(chains, watcher, role, "1/1", Console(), at_least=LIVE)
        publisher.terminate()
        assert publisher.wait(30) == 0
        keys = set(ledger.read_text().split())
        assert keys
        kill_loop.wait_for(lambda: len(watcher.ended) >= len(keys) and watcher.live() == 0, PATIENCE)
        kill_loop.wait_for(lambda: not kill_loop.compare(watcher, keys, chains.services.database_url), PATIENCE)
        assert kill_loop.compare(watcher, keys, chains.services.database_url) == []
        assert chains.restarts() == dict.fromkeys(("engine", "worker-1", "router", "audit"), 1)
        assert chains.cli("execution", "verify").stdout == ""
    finally:
        publisher.kill()
        watcher.close()
