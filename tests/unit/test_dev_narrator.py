"""What `flowpilot dev` says of processes that end, over real ones."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from flowpilot.local.dev.narrator import Narrator
from flowpilot.local.supervisor import Supervisor
from tests.waiting import eventually

RUNS = "import signal, sys; print('one of its lines', flush=True); signal.pause()"


@pytest.mark.parametrize("last_words", [True, False])
def test_the_last_lines_of_a_process_are_shown_unless_it_was_killed(tmp_path: Path, last_words: bool) -> None:
    said: list[str] = []
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("role", [sys.executable, "-c", RUNS])
        narrator = Narrator(supervisor, (), said.append)
        eventually(lambda: "one of its lines" in supervisor.log_path("role").read_text())
        narrator.tell()
        supervisor.kill("role", signal.SIGABRT if last_words else signal.SIGKILL)
        eventually(lambda: narrator.tell() or said)
    assert said[0].startswith("role ended (killed by SIG")
    assert ("role | one of its lines" in said) == last_words
