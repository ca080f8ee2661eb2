"""The functions of examples/checksums.py, over real files."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples import checksums
from examples.checksums import PARTS, Part, Report, Tree, hash_part, join, name_in, prepare, tidy
from flowpilot import NonRetryable, StepContext
from flowpilot_schemas.ids import TaskId

EXECUTION = "1c2f3a4b-0000-5000-8000-000000000001"


def context(step: str, attempt: int = 1) -> StepContext:
    return StepContext(TaskId(EXECUTION, 0, step, attempt))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "tree").mkdir()
    return Tree(root=str(tmp_path / "tree"), report=str(tmp_path / "report"))


def fill(tree: Tree, names: list[bytes]) -> dict[bytes, str]:
    """Files of these names, each with another content; their checksums."""
    sums = {}
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(tree.root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"%d" % number * number)
        sums[name] = hashlib.sha256(b"%d" % number * number).hexdigest()
    return sums


def part(tree: Tree, folder: str, number: int, attempt: int = 1) -> Part:
    return hash_part(tree, folder, number=number, of=PARTS, ctx=context(f"part-{number}", attempt))


def run(tree: Tree) -> Report:
    """The whole workflow, as one process would do it."""
    folder = prepare(tree, context("prepare"))
    parents = {f"part-{number}": part(tree, folder, number) for number in range(PARTS)}
    report = join(tree, parents, context("join"))
    tidy(folder)
    assert os.listdir(os.path.dirname(tree.report)) in (["tree", "report"], ["report", "tree"])
    return report


def lines(tree: Tree) -> list[bytes]:
    return Path(tree.report).read_bytes().splitlines()


def test_every_file_is_in_the_report_once_and_in_order(tree: Tree) -> None:
    sums = fill(tree, [b"%d/%d.txt" % (n % 5, n) for n in range(60)])
    os.symlink("0/0.txt", os.path.join(tree.root, "link"))
    os.mkfifo(os.path.join(tree.root, "pipe"))  # opening it would wait for ever
    report = run(tree)
    assert report == Report(report=tree.report, files=60, bytes=sum(len(str(n)) * n for n in range(60)), problems=0)
    assert lines(tree) == [digest.encode() + b"  " + name for name, digest in sorted(sums.items())]


def test_names_need_not_be_text_and_sha256sum_understands_the_report(tree: Tree) -> None:
    fill(tree, [b"two  blanks", b"a\nb", b"c\\d", b"\xff\xfe", b"# hash", b"cr\r", "größe".encode()])
    assert run(tree).files == 7
    if shutil.which("sha256sum"):
        checked = subprocess.run(
            ["sha256sum", "--strict", "--check", tree.report], cwd=tree.root, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, b""), checked
        assert checked.stdout.count(b"OK\n") == 7


def test_an_empty_tree_has_an_empty_report(tree: Tree) -> None:
    assert run(tree) == Report(report=tree.report, files=0, bytes=0, problems=0)
    assert Path(tree.report).read_bytes() == b""


def test_what_cannot_be_read_is_a_comment_and_stops_nothing(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = fill(tree, [b"fine", b"gone", b"secret", b"closed/file"])
    read, scan = checksums.sha256, os.scandir

    def reading(path: bytes) -> tuple[str, int]:
        if path.endswith(b"gone"):
            os.unlink(path)
        if path.endswith(b"secret"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return read(path)

    def scanning(path: Any) -> Iterator[Any]:
        if path.endswith(b"closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(checksums, "sha256", reading)
    monkeypatch.setattr(os, "scandir", scanning)
    folder = prepare(tree, context("prepare"))
    parents = {f"part-{number}": part(tree, folder, number) for number in range(PARTS)}
    report = join(tree, parents, context("join"))
    assert (report.files, report.problems) == (1, 3)
    assert lines(tree) == [
        b"#  closed: Permission denied",
        sums[b"fine"].encode() + b"  fine",
        b"#  gone: No such file or directory",
        b"#  secret: Permission denied",
    ]


def test_a_file_that_changes_is_read_again_and_then_told(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tree, [b"log"])
    path = os.path.join(tree.root, "log")
    digest, times = hashlib.file_digest, []

    def meanwhile(file: Any, kind: str) -> Any:
        found = digest(file, kind)
        if len(times) < limit:
            times.append(os.path.getsize(path))
            with open(path, "ab") as log:
                log.write(b"more")
        return found

    monkeypatch.setattr(hashlib, "file_digest", meanwhile)
    limit = 1
    assert checksums.sha256(os.fsencode(path)) == (hashlib.sha256(b"more").hexdigest(), 4)
    limit = 99
    assert run(tree).problems == 1
    assert lines(tree) == [b"#  log: changed in each of 3 reads"]


def test_a_tree_that_vanishes_fails_the_attempt(tree: Tree) -> None:
    folder = prepare(tree, context("prepare"))
    os.rmdir(tree.root)
    with pytest.raises(FileNotFoundError):
        part(tree, folder, 0)


def test_an_attempt_that_nobody_waits_for_leaves_the_next_ones_file_alone(tree: Tree) -> None:
    fill(tree, [b"%d" % n for n in range(20)])
    folder = prepare(tree, context("prepare"))
    found = part(tree, folder, 1, attempt=2)
    written = Path(found.file).read_bytes()
    assert written
    late = context("part-1", attempt=1)
    late.cancel()
    with pytest.raises(InterruptedError):
        hash_part(tree, folder, number=1, of=PARTS, ctx=late)
    assert Path(found.file).read_bytes() == written


def test_each_step_can_be_done_again(tree: Tree) -> None:
    fill(tree, [b"a", b"b"])
    for attempt in (1, 2):
        folder = prepare(tree, context("prepare", attempt))
        parents = {f"part-{number}": part(tree, folder, number, attempt) for number in range(PARTS)}
    first = join(tree, parents, context("join", 1)), Path(tree.report).read_bytes()
    again = join(tree, parents, context("join", 2)), Path(tree.report).read_bytes()
    assert first == again
    tidy(folder)
    tidy(folder)


def test_what_cannot_succeed_is_not_tried_again(tree: Tree) -> None:
    with pytest.raises(NonRetryable, match="there is no directory"):
        prepare(Tree(root=tree.root + "s", report=tree.report), context("prepare"))
    for report in (tree.root + "/report", tree.root, os.path.dirname(tree.root)):
        with pytest.raises(NonRetryable, match="name a file outside"):
            prepare(Tree(root=tree.root, report=report), context("prepare"))


def test_lines_are_sorted_by_name_also_where_they_are_comments() -> None:
    assert name_in(b"#  b: gone\n") < name_in(b"00ff  c\n") < name_in(b"\\00aa  d\\n\n")
