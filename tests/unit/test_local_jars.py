"""The jars' cache, against a real HTTP server that stands for a Maven repository."""

from __future__ import annotations

import functools
import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flowpilot.local import jars
from flowpilot.local.errors import DownloadFailed
from flowpilot.local.jars import ensure_jars, locked_jars


@dataclass
class Repository:
    root: Path
    address: str = ""
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """Three small jars, with a lock file that names them."""
    repository = Repository(tmp_path / "repository")
    lines = []
    for name in ("one", "two", "three"):
        content = name.encode() * 1000
        file = repository.root / f"org/example/deep/{name}/1.0/{name}-1.0.jar"
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        lines.append(
            f"{hashlib.sha256(content).hexdigest()}  {len(content)}  {file.relative_to(repository.root).as_posix()}"
        )
    lock = tmp_path / "test.lock"
    lock.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(jars, "LOCK_FILE", lock)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            if self.path.endswith(".jar"):
                repository.requests.append(self.path)

    handler = functools.partial(Handler, directory=str(repository.root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        repository.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield repository
        server.shutdown()
        thread.join()


def test_the_lock_file_names_the_broker_whole() -> None:
    locked = locked_jars()
    assert len(locked) == 45
    assert len({jar.path.name for jar in locked}) == 45
    assert ("org.apache.kafka", "kafka_2.13", "4.4.0") in {jar.coordinates for jar in locked}


def test_fetched_once_and_then_without_the_network(repository: Repository, tmp_path: Path) -> None:
    paths = ensure_jars(tmp_path / "cache", repository.address)
    assert [path.read_bytes()[:3] for path in paths] == [b"one", b"two", b"thr"]
    assert len(repository.requests) == 3
    assert ensure_jars(tmp_path / "cache", "http://127.0.0.1:9") == paths
    assert len(repository.requests) == 3
    assert sorted(file.name for file in paths[0].parent.iterdir()) == [
        ".lock", "one-1.0.jar", "three-1.0.jar", "two-1.0.jar",
    ]  # fmt: skip


def test_a_wrong_checksum_is_an_error_and_nothing_is_kept(repository: Repository, tmp_path: Path) -> None:
    file = repository.root / "org/example/deep/two/1.0/two-1.0.jar"
    file.write_bytes(b"owt" * 1000)  # of the right size
    with pytest.raises(DownloadFailed, match=r"two-1\.0\.jar .* sha256"):
        ensure_jars(tmp_path / "cache", repository.address)
    left = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert "two-1.0.jar" not in left
    file.write_bytes(b"two" * 1000)
    assert len(ensure_jars(tmp_path / "cache", repository.address)) == 3


def test_a_damaged_cache_is_repaired(repository: Repository, tmp_path: Path) -> None:
    paths = ensure_jars(tmp_path / "cache", repository.address)
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"?")
    paths[2].unlink()
    ensure_jars(tmp_path / "cache", repository.address)
    assert paths[1].read_bytes() == b"two" * 1000
    assert len(repository.requests) == 5


def test_no_network_is_told_with_a_remedy(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "TRIES", 1)
    with pytest.raises(DownloadFailed, match="FLOWPILOT_MAVEN_REPOSITORY"):
        ensure_jars(tmp_path / "cache", "http://127.0.0.1:9")


def test_processes_at_once_fetch_each_jar_once(repository: Repository, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from flowpilot.local import jars;"
        f"jars.LOCK_FILE = Path({str(jars.LOCK_FILE)!r});"
        "print(len(jars.ensure_jars(Path(sys.argv[1]), sys.argv[2])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache"), repository.address]
    racers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [racer.communicate(timeout=60)[0].strip() for racer in racers] == ["3"] * 4
    assert len(repository.requests) == 3
