"""Ctrl-C on a campaign of the tests: one line, exit code 130, and no process that goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.interrupts import Children
from tests.waiting import eventually

_ROOT = Path(__file__).parents[2]
# Atheris is not installed for every test, and what a target's process does matters not.
_FUZZ = """
import sys
import tests.fuzz.__main__ as campaign
campaign._ONE = [sys.executable, "-c", "import time; time.sleep(600)"]
sys.exit(campaign.main())
"""

# What is run, how many processes it starts, and the line that it ends with.
CAMPAIGNS = {
    "fuzz": (("-c", _FUZZ, "--at-once", "2", "--directory", "{folder}"), 2, r"0 of \d+ targets done, 0 inputs, .*"),
    "simulate": (("-m", "tests.simulation", "--processes", "2"), 3, r"\d+ of 1000 seeds done, 0 failing"),
    "exhaustive": (("-m", "tests.exhaustive"), 0, r"\d+ workflows done, [\d,]+ transitions, 0 violations"),
    "mutants": (("-m", "tests.mutants", "--at-once", "2"), 2, r"0 of \d+ layers tried without a defect"),
}


def below(pid: int) -> set[int]:
    """The processes that `pid` and its descendants have started and that run."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    children = defaultdict(set)
    for child, parent, state in map(str.split, listed.stdout.splitlines()):
        if not state.startswith("Z"):
            children[int(parent)].add(int(child))
    found, wanted = set[int](), [pid]
    while wanted:
        started = children[wanted.pop()]
        found |= started
        wanted += started
    return found


def running(pids: set[int]) -> set[int]:
    """Those of `pids` that have not ended."""
    listed = subprocess.run(["ps", "-eo", "pid=,stat="], capture_output=True, text=True, check=True)
    states = dict(map(str.split, listed.stdout.splitlines()))
    return {pid for pid in pids if not states.get(str(pid), "Z").startswith("Z")}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_campaign_ends_with_one_line_and_leaves_nobody(name: str, tmp_path: Path) -> None:
    command, children, line = CAMPAIGNS[name]
    process = subprocess.Popen(
        [
            sys.executable,
            "-u",
            *(word.format(folder=tmp_path / "fuzz") if "{f" in word else word for word in command),
        ],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": ".:agents:schemas", "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started = set[int]()
    try:
        if children:
            started = eventually(lambda: found if len(found := below(process.pid)) >= children else None, 60)
        else:
            assert process.stdout is not None
            assert "DAGs" in process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=90)
        assert process.returncode == 130, err
        said = [line for line in err.splitlines() if not line.startswith("seed ")]  # fuzz says its seed first
        assert len(said) == 1, err
        assert re.fullmatch(f"interrupted: {line}", said[0]), err
        assert "Traceback" not in out
        eventually(lambda: not running(started), what="processes that go on")
        assert [path.name for path in tmp_path.iterdir()] == (["fuzz"] if name == "fuzz" else [])
    finally:
        process.kill()
        for pid in running(started):
            os.kill(pid, signal.SIGKILL)


def test_a_child_hears_of_the_end_from_its_parent_alone(tmp_path: Path) -> None:
    """Ctrl-C reaches a whole group: a child that heard it there, and again from its parent, would break off."""
    told = tmp_path / "told"
    child = (
        "import os, pathlib, signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    pathlib.Path(sys.argv[1]).write_text(f'{os.getpgid(0)}\\n'); time.sleep(600)\n"
        "except KeyboardInterrupt:\n    open(sys.argv[1], 'a').write('tidied')\n"
    )
    script = (
        "import sys, threading, time\nfrom tests.interrupts import Children\nchildren = Children()\n"
        "threading.Thread(target=children.run, args=([sys.executable, '-c', *sys.argv[1:]], 600)).start()\n"
        "try:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    children.stop()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, child, str(told)], cwd=_ROOT, start_new_session=True)
    eventually(lambda: told.exists() and told.read_text().endswith("\n"), 60)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 0
    group, end = told.read_text().splitlines()
    assert (int(group) != process.pid, end) == (True, "tidied")


def test_a_child_is_run_as_any_and_not_begun_in_vain() -> None:
    children = Children()
    done = children.run([sys.executable, "-c", "import sys; print('out'); sys.exit('err')"], 60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")
    with pytest.raises(subprocess.TimeoutExpired):
        children.run([sys.executable, "-c", "import time; time.sleep(600)"], 0.1)
    children.stop()
    late = children.run([sys.executable, "-c", "import time; time.sleep(600)"], 60)
    assert late.returncode == -signal.SIGINT
