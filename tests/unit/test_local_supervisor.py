"""The supervisor with real, small child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowpilot.local.errors import ChildFailed, LocalError, StateInUse
from flowpilot.local.identity import identity
from flowpilot.local.supervisor import Supervisor

SLEEP = ["sleep", "600"]


def eventually(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    return identity(pid) is None


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "state") as started:
        yield started


def test_a_killed_child_is_started_again_at_once_and_counted(supervisor: Supervisor) -> None:
    first = supervisor.start("a", SLEEP)
    begun = time.monotonic()
    assert supervisor.kill("a") == first
    second = supervisor.wait_restarted("a", 0)
    assert time.monotonic() - begun < 2
    assert second != first
    assert supervisor.pid("a") == second
    assert supervisor.restarts("a") == 1
    assert supervisor.exit_status("a") == -signal.SIGKILL


def test_a_child_that_is_killed_on_purpose_again_and_again_never_waits(supervisor: Supervisor) -> None:
    supervisor.start("a", SLEEP)
    begun = time.monotonic()
    for number in range(6):  # one that died so often by itself would have waited for 0.2, 0.4, 0.8, 1.6, 3.2 s
        supervisor.kill("a")
        supervisor.wait_restarted("a", number)
    assert time.monotonic() - begun < 5


def test_a_child_that_keeps_dying_is_started_ever_more_slowly(supervisor: Supervisor) -> None:
    supervisor.start("crasher", ["false"])
    eventually(lambda: supervisor.restarts("crasher") >= 3)
    begun = time.monotonic()
    before = supervisor.restarts("crasher")
    eventually(lambda: supervisor.restarts("crasher") > before)
    assert time.monotonic() - begun > 0.3


def test_without_restart_its_end_is_final(supervisor: Supervisor) -> None:
    supervisor.start("once", [sys.executable, "-c", "raise SystemExit(3)"], restart=False)
    assert supervisor.wait("once", timeout=10) == 3
    assert supervisor.pid("once") is None
    assert supervisor.restarts("once") == 0


def test_without_restart_a_very_short_life_is_final_too(supervisor: Supervisor) -> None:
    for number in range(20):
        supervisor.start(f"short-{number}", ["true"], restart=False)
        assert supervisor.wait(f"short-{number}", timeout=10) == 0
    assert all(supervisor.restarts(name) == 0 for name in supervisor.names())


def test_a_program_that_is_run_to_its_end(supervisor: Supervisor) -> None:
    supervisor.run("true", ["true"])
    supervisor.run("echo", ["sh", "-c", "echo old failure"])
    with pytest.raises(ChildFailed, match="exit status 4") as caught:
        supervisor.run("echo", ["sh", "-c", "echo new failure; exit 4"])
    assert caught.value.log_tail == "new failure"
    with pytest.raises(ChildFailed, match="did not end"):
        supervisor.run("long", SLEEP, timeout=0.2)
    assert supervisor.names() == []


def test_a_child_that_ends_before_it_is_ready_says_why(supervisor: Supervisor) -> None:
    with pytest.raises(ChildFailed, match="exit status 1") as caught:
        supervisor.start("a", [sys.executable, "-c", "raise SystemExit('no such table')"], ready=lambda: False)
    assert "no such table" in str(caught.value)
    assert supervisor.names() == []


def test_a_child_that_is_never_ready_is_stopped(supervisor: Supervisor) -> None:
    pids: list[int] = []

    def never() -> bool:
        pids.append(supervisor.pid("a") or 0)
        return False

    with pytest.raises(ChildFailed, match="not ready within"):
        supervisor.start("a", SLEEP, ready=never, ready_timeout=0.2)
    assert supervisor.names() == []
    assert is_gone(pids[0])


def test_stop_all_goes_backwards_and_ends_what_ignores_the_signal(tmp_path: Path) -> None:
    order = tmp_path / "order"
    polite = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); open(sys.argv[3], 'w'); time.sleep(600)"
    )
    deaf = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1], 'w'); time.sleep(600)"
    )
    with Supervisor(tmp_path / "state") as supervisor:
        pids = []
        for name in ("first", "second"):
            flag = tmp_path / f"{name}.ready"
            pids.append(
                supervisor.start(name, [sys.executable, "-c", polite, order, name, flag], ready=flag.exists)
            )
        flag = tmp_path / "deaf.ready"
        pids.append(supervisor.start("deaf", [sys.executable, "-c", deaf, flag], ready=flag.exists, grace=0.3))
    assert order.read_text().split() == ["second", "first"]
    assert all(is_gone(pid) for pid in pids)
    supervisor.stop_all()  # again, without harm


@pytest.mark.parametrize(("answer", "status"), [("sys.exit(3)", 3), ("pass", -signal.SIGKILL)])
def test_a_stop_returns_how_the_child_ended(
    supervisor: Supervisor, tmp_path: Path, answer: str, status: int
) -> None:
    flag = tmp_path / "ready"
    program = (
        "import signal, sys, time\n"
        f"def end(*_):\n    {answer}\n"
        "signal.signal(signal.SIGTERM, end); open(sys.argv[1], 'w')\n"
        "while True: time.sleep(600)"
    )
    grace = 0.3 if answer == "pass" else 20.0
    supervisor.start("a", [sys.executable, "-c", program, flag], ready=flag.exists, grace=grace)
    assert supervisor.stop("a") == status


def test_grandchildren_end_with_their_parent(supervisor: Supervisor, tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    supervisor.start(
        "shell", ["sh", "-c", f"sleep 600 & echo $! > {note}.new; mv {note}.new {note}; wait"], ready=note.exists
    )
    grandchild = int(note.read_text())
    assert not is_gone(grandchild)
    supervisor.kill("shell")
    eventually(lambda: is_gone(grandchild))


def test_environment_and_log(supervisor: Supervisor) -> None:
    supervisor.start("echo", ["sh", "-c", "echo $GREETING $HOME"], env={"GREETING": "hello"}, restart=False)
    supervisor.wait("echo", timeout=10)
    assert supervisor.log_path("echo").read_text().strip() == f"hello {os.environ['HOME']}"


def test_mistakes_are_told(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="there is no program nonesuch"):
        supervisor.start("a", ["nonesuch"])
    with pytest.raises(LocalError, match="no child named b"):
        supervisor.kill("b")
    supervisor.start("a", SLEEP)
    with pytest.raises(LocalError, match="already there"):
        supervisor.start("a", SLEEP)
    with pytest.raises(StateInUse, match=str(os.getpid())):
        Supervisor(tmp_path / "state")


OWNER = """
import sys, time
from pathlib import Path
from flowpilot.local import child, monitor, supervisor
if sys.argv[2] == "no-death-signal":
    child_script = Path(sys.argv[1]) / "child.py"
    child_script.write_text(Path(child.__file__).read_text().replace('sys.platform == "linux"', "False"))
    monitor.child_script.__file__ = str(child_script)
folder = Path(sys.argv[1])
s = supervisor.Supervisor(folder / "state")
one, two = folder / "one", folder / "two"
print(
    s.start("one", ["sh", "-c", f"touch {{one}}; exec sleep 600"], ready=one.exists),
    s.start("two", ["sh", "-c", f"sleep 600 & touch {{two}}; wait"], ready=two.exists),
    flush=True,
)
{ending}
"""


def run_owner(folder: Path, kind: str, ending: str) -> tuple[subprocess.Popen[str], list[int]]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(ending=ending), folder, kind], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    return owner, [int(pid) for pid in owner.stdout.readline().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_children_end_with_a_killed_owner(tmp_path: Path) -> None:
    owner, pids = run_owner(tmp_path, "normal", "time.sleep(600)")
    assert len(pids) == 2
    assert not any(is_gone(pid) for pid in pids)
    owner.kill()
    owner.wait()
    eventually(lambda: all(is_gone(pid) for pid in pids))
    # The kernel does not reach what a child started in its turn; the next supervisor knows its mark.
    with Supervisor(tmp_path / "state") as supervisor:
        assert supervisor.leftovers == ["two"]


def test_the_next_supervisor_stops_what_a_killed_owner_left(tmp_path: Path) -> None:
    owner, pids = run_owner(tmp_path, "no-death-signal", "time.sleep(600)")
    bystander = subprocess.Popen(SLEEP)
    try:
        owner.kill()
        owner.wait()
        time.sleep(0.2)  # long enough for a death signal, had there been one
        assert not any(is_gone(pid) for pid in pids), "this test needs children that outlive their owner"
        with Supervisor(tmp_path / "state") as supervisor:
            assert sorted(supervisor.leftovers) == ["one", "two"]
            assert all(is_gone(pid) for pid in pids)
            supervisor.start("one", SLEEP)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_recorded_pid_that_is_somebody_else_now_is_left_alone(tmp_path: Path) -> None:
    owner, pids = run_owner(tmp_path, "normal", "time.sleep(600)")
    owner.kill()
    owner.wait()
    eventually(lambda: all(is_gone(pid) for pid in pids))
    bystander = subprocess.Popen(SLEEP)
    try:
        record = tmp_path / "state" / "processes.json"
        record.write_text(record.read_text().replace(str(pids[0]), str(bystander.pid)))
        with Supervisor(tmp_path / "state") as supervisor:
            assert "one" not in supervisor.leftovers
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_owner_that_forgets_to_stop_leaves_nothing(tmp_path: Path) -> None:
    owner, pids = run_owner(tmp_path, "no-death-signal", "sys.exit()")
    assert owner.wait(timeout=20) == 0
    assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)
