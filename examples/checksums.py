"""Checksums of a directory tree: parts side by side, each over its share of the files, joined into one report.

    flowpilot workflow apply examples.checksums:checksums
    flowpilot worker examples.checksums:checksums &
    flowpilot execution start checksums --input '{"root": "docs", "report": "docs.sha256"}' --wait

In the folder docs, `sha256sum --check ../docs.sha256` then agrees with every file.

Paths are as the workers see them: several workers share a file system. Regular files count, links are not followed.
A file that cannot be read, vanished or kept changing stops nothing: it becomes a comment in the report.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import shutil
import stat
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from pydantic import BaseModel

from flowpilot import NonRetryable, StepContext, Workflow

PARTS = 8
READS = 3  # of a file that changes meanwhile


class Tree(BaseModel):
    root: str
    report: str


class Part(BaseModel):
    file: str  # the checksums themselves: results are small, files are not
    files: int
    bytes: int
    problems: int


class Report(BaseModel):
    report: str
    files: int
    bytes: int
    problems: int


checksums = Workflow("checksums", version="1", input=Tree)


@checksums.step
def prepare(input: Tree, ctx: StepContext) -> str:
    """Makes the folder for the parts: beside the report, and this execution's own."""
    root, report = Path(input.root).resolve(), Path(input.report).resolve()
    if not root.is_dir():
        raise NonRetryable(f"there is no directory {root}; is the worker on the right machine?")
    if report.is_relative_to(root) or report.is_dir():
        raise NonRetryable(f"{report} cannot be the report: name a file outside of {root}")
    folder = report.with_name(f"{report.name}.{ctx.execution}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def hash_part(input: Tree, prepare: str, number: int, of: int, ctx: StepContext) -> Part:
    """Hashes the files that fall to part `number`. Their names decide, so no list of files has to travel."""
    part = Part(file=os.path.join(prepare, ctx.step), files=0, bytes=0, problems=0)
    root = os.fsencode(input.root)  # names are bytes: not every one is text
    lines: list[bytes] = []
    unlisted: list[OSError] = []

    def mine(path: bytes) -> bool:
        return zlib.crc32(os.path.relpath(path, root)) % of == number

    def note(path: bytes, problem: OSError) -> None:
        part.problems += 1
        reason = problem.strerror or str(problem)
        lines.append(line(b"#", os.path.relpath(path, root) + f": {reason}".encode()))

    for folder, _, names in os.walk(root, onerror=unlisted.append):
        for path in filter(mine, (os.path.join(folder, name) for name in names)):
            if ctx.cancelled:
                raise InterruptedError("nobody waits for this part any more")
            try:
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    continue
                digest, size = sha256(path)
            except OSError as problem:
                note(path, problem)
            else:
                part.files += 1
                part.bytes += size
                lines.append(line(digest.encode(), os.path.relpath(path, root)))
    for problem in unlisted:
        if problem.filename == root:
            raise problem
        if mine(problem.filename):
            note(problem.filename, problem)
    write_whole(part.file, sorted(lines, key=name_in), ctx)
    return part


parts = [
    checksums.add_step(hash_part, name=f"part-{number}", args={"number": number, "of": PARTS}, timeout="1h")
    for number in range(PARTS)
]


@checksums.step(depends_on=parts, output=True)
def join(input: Tree, parents: Mapping[str, Part], ctx: StepContext) -> Report:
    """Merges the parts, each sorted by name, into the report."""
    found = parents.values()
    with ExitStack() as stack:
        files = [stack.enter_context(open(part.file, "rb")) for part in found]
        write_whole(input.report, heapq.merge(*files, key=name_in), ctx, beside=files[0].name)
    return Report(
        report=input.report,
        files=sum(part.files for part in found),
        bytes=sum(part.bytes for part in found),
        problems=sum(part.problems for part in found),
    )


@checksums.step(depends_on=[join])
def tidy(prepare: str) -> None:
    """Removes the parts. Not in `join`: another attempt of it would find nothing to join."""
    shutil.rmtree(prepare, ignore_errors=True)


def sha256(path: bytes) -> tuple[str, int]:
    """Checksum and size of a file. Raises OSError, also if it was written to whenever it was read."""
    for _ in range(READS):
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
            return digest, after.st_size
    raise OSError(errno.EBUSY, f"changed in each of {READS} reads")


def line(mark: bytes, name: bytes) -> bytes:
    """A line as sha256sum writes it, and understands it; "#" marks a comment."""
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"" if escaped == name or mark == b"#" else b"\\") + mark + b"  " + escaped + b"\n"


def name_in(line: bytes) -> bytes:
    """The file's name in a line, by which lines are sorted."""
    return line.partition(b"  ")[2]


def write_whole(file: str, lines: Iterable[bytes], ctx: StepContext, beside: str | None = None) -> None:
    """The file is there at once or not at all. Each attempt has a draft of its own, beside the parts."""
    draft = os.path.join(os.path.dirname(beside or file), f"{ctx.step}.{ctx.attempt}.draft")
    with open(draft, "wb") as output:
        output.writelines(lines)
    os.replace(draft, file)
