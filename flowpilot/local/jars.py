"""The jars of Apache Kafka: fetched once from a Maven repository, each checked, kept in a cache.

`kafka-4.4.0.lock` beside this file names every jar by sha256, size in bytes and path in a Maven
repository. The list is the resolved tree, so nothing is resolved here: a resolver may pick
another version of one jar than the broker was built with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flowpilot.local.errors import DownloadFailed

KAFKA_VERSION = "4.4.0"
LOCK_FILE = Path(__file__).with_name(f"kafka-{KAFKA_VERSION}.lock")
AT_ONCE = 8
TRIES = 3

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Jar:
    """One line of the lock file."""

    sha256: str
    size: int  # bytes
    path: PurePosixPath  # group/as/folders/artifact/version/artifact-version.jar

    @property
    def coordinates(self) -> tuple[str, str, str]:
        """Maven's (group, artifact, version)."""
        *group, artifact, version = self.path.parent.parts
        return ".".join(group), artifact, version

    def is_at(self, file: Path) -> bool:
        """Whether `file` exists and is this jar, byte for byte."""
        try:
            if file.stat().st_size != self.size:
                return False
            with file.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256
        except OSError:
            return False


def locked_jars() -> list[Jar]:
    """The jars that the lock file names, in its order."""
    lines = (line.split() for line in LOCK_FILE.read_text().splitlines() if line.strip())
    return [Jar(sha256, int(size), PurePosixPath(path)) for sha256, size, path in lines]


def cache_directory() -> Path:
    """Where downloads are kept: FLOWPILOT_CACHE_DIR, else ~/.cache/flowpilot."""
    return Path(os.environ.get("FLOWPILOT_CACHE_DIR") or Path.home() / ".cache" / "flowpilot").expanduser()


def ensure_jars(cache: Path | None = None, repository: str | None = None) -> list[Path]:
    """Paths of all jars, fetching what the cache lacks; without the network if it lacks nothing.

    `cache`: default `cache_directory()`; `repository`: the address of a Maven repository, default
    FLOWPILOT_MAVEN_REPOSITORY, else Maven Central. Shows its progress on stderr. Several
    processes may do this at once: one fetches, the others wait, and a file appears in the cache
    whole or not at all. Raises DownloadFailed.
    """
    folder = (cache or cache_directory()) / f"kafka-{KAFKA_VERSION}"
    jars = locked_jars()
    if missing := _missing(jars, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder):
            if missing := _missing(jars, folder):  # else another process was faster
                _fetch_all(missing, folder, repository or os.environ.get("FLOWPILOT_MAVEN_REPOSITORY"))
    return [folder / jar.path.name for jar in jars]


def _missing(jars: list[Jar], folder: Path) -> list[Jar]:
    if not folder.is_dir():
        return jars
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        present = pool.map(lambda jar: jar.is_at(folder / jar.path.name), jars)
        return [jar for jar, is_there in zip(jars, present, strict=True) if not is_there]


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    import fcntl

    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go when this process ends, however it ends
        for left_over in folder.glob(".fetching-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        yield


def _fetch_all(jars: list[Jar], folder: Path, repository: str | None) -> None:
    stopped = threading.Event()
    staging = Path(tempfile.mkdtemp(prefix=".fetching-", dir=folder))
    try:
        with (
            _progress(len(jars), sum(jar.size for jar in jars)) as advance,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            fetches = [pool.submit(_fetch, jar, folder, staging, repository, advance, stopped) for jar in jars]
            try:
                for fetch in fetches:
                    fetch.result()
            except BaseException:
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch(
    jar: Jar, folder: Path, staging: Path, repository: str | None, advance: Advance, stopped: threading.Event
) -> None:
    group, artifact, version = jar.coordinates
    repositories = {"mirror": repository.rstrip("/")} if repository else {"central": _maven_central()}
    for attempt in range(1, TRIES + 1):
        if stopped.is_set():
            return
        # A folder a try: what is left of a broken download is never taken for a cached file.
        target = staging / f"{attempt}-{jar.sha256[:16]}"
        counted = _Counted(advance)
        try:
            fetched = _download(target, repositories, (group, artifact, version), counted)
        except (OSError, RuntimeError) as error:
            counted.take_back()
            if attempt == TRIES:
                raise DownloadFailed(
                    f"cannot fetch {jar.path.name} ({error}): check the network, or name a mirror in "
                    "FLOWPILOT_MAVEN_REPOSITORY"
                ) from error
            time.sleep(0.5 * attempt)
            continue
        if not jar.is_at(fetched):
            size = fetched.stat().st_size
            fetched.unlink()
            raise DownloadFailed(
                f"{jar.path.name} as fetched ({size} bytes) does not have the sha256 that {LOCK_FILE.name} names "
                f"({jar.sha256}) and was removed: fetch again, or check the mirror in FLOWPILOT_MAVEN_REPOSITORY"
            )
        os.replace(fetched, folder / jar.path.name)
        return


def _download(target: Path, repositories: dict[str, str], gav: tuple[str, str, str], counted: _Counted) -> Path:
    from jgo.maven import MavenContext, PythonResolver

    resolver = PythonResolver(progress_callback=counted.file)
    context = MavenContext(resolver=resolver, repo_cache=target, remote_repos=repositories, timeout=30)
    group, artifact, version = gav
    return Path(context.project(group, artifact).at_version(version).artifact().resolve())


def _maven_central() -> str:
    from jgo.constants import MAVEN_CENTRAL_URL

    return str(MAVEN_CENTRAL_URL)


class _Counted:
    """Passes the bytes of one try on to the progress display, and takes them back if it failed."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._bytes = 0

    def _add(self, count: int) -> None:
        self._bytes += count
        self._advance(count)

    @contextmanager
    def file(self, _name: str, _size: int) -> Iterator[Advance]:
        yield self._add

    def take_back(self) -> None:
        self._advance(-self._bytes)
        self._bytes = 0


@contextmanager
def _progress(files: int, size: int) -> Iterator[Advance]:
    """A bar on a terminal, a plain line at each quarter otherwise; both on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns: tuple[Any, ...] = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(f"Apache Kafka {KAFKA_VERSION}, {files} files", total=size)
            yield lambda count: bar.advance(task, count)
        return

    lock, done, told, begun = threading.Lock(), 0, 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, told
        with lock:
            done += count
            quarter = 4 * done // max(size, 1)
            if told < quarter < 4:
                told = quarter
                print(f"Apache Kafka {KAFKA_VERSION}: {25 * quarter} %", file=sys.stderr, flush=True)

    print(f"Apache Kafka {KAFKA_VERSION}: fetching {files} files, {size / 1e6:.1f} MB", file=sys.stderr, flush=True)
    yield advance
    print(f"Apache Kafka {KAFKA_VERSION}: fetched in {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
