"""The roles that `flowpilot dev` runs beside the worker, and the ports that they take."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flowpilot.local.errors import ChildFailed
from flowpilot.local.ports import free_ports, is_free, require_free
from flowpilot.local.system import LocalSystem
from flowpilot.settings import Settings

WORKER, API = "worker", "api"
# Each is a command of the command line.
ROLES = ("engine", "router", "audit", API)

_MEASURED = ("engine", "router", "audit", WORKER, API)

# Where the API listens unless a port is asked for: the first of these that is free, or anywhere.
_USUAL = range(8_080, 8_100)
_START_TRIES = 3


def metrics_of(role: str, settings: Settings) -> dict[str, str]:
    """The role's metrics port by environment name: one after the other, from the one that is set."""
    first = settings.metrics_port
    if first is None or role not in _MEASURED:
        return {}
    return {"FLOWPILOT_METRICS_PORT": str(first + _MEASURED.index(role))}


class ApiPort:
    """Where the API listens: `asked`, or none (`PortTaken`); else where it did last time (`remembered` names the
    file that knows), the next free one from 8080 on, or any. So a second `flowpilot dev` starts beside the first.
    """

    def __init__(self, asked: int | None, remembered: Path) -> None:
        self.is_asked_for = asked is not None
        self._asked, self._file = asked, remembered
        if asked is not None:
            require_free(asked, "the API")

    def choose(self) -> int:
        """One that is free now; another program may take it before the API does."""
        if self._asked is not None:
            return self._asked
        return next(filter(is_free, [*self._last(), *_USUAL]), 0) or free_ports(1)[0]

    def remember(self, port: int) -> None:
        """The API listens there."""
        self._file.write_text(f"{port}\n")

    def _last(self) -> list[int]:
        try:
            return [int(port) for port in self._file.read_text().split()]
        except (OSError, ValueError):
            return []


class DevRoles:
    """Starts the roles under the system's supervisor, and stops them with the worker."""

    def __init__(self, system: LocalSystem, settings: Settings, port: ApiPort) -> None:
        self._system, self._settings, self._port = system, settings, port
        self.api_port = 0
        """Where the API listens, once it is started."""

    @property
    def api_address(self) -> str:
        """As the started API has said it: http://127.0.0.1:8080."""
        said = self._system.supervisor.log_path(API).read_text(errors="replace")
        return said.rpartition("api ready: ")[2].split()[0]

    def start(self, name: str, environment: Mapping[str, str]) -> None:
        """Start one of `ROLES`; returns when it is ready. Raises `ChildFailed`."""
        environment = {**environment, **metrics_of(name, self._settings)}
        if name == API:
            self._start_api(environment)
        else:
            self._system.start(name, name, environment=environment)

    def _start_api(self, environment: Mapping[str, str]) -> None:
        for attempt in range(1, _START_TRIES + 1):
            port = self._port.choose()
            chosen = {**environment, "FLOWPILOT_API_PORT": str(port)}
            try:
                self._system.start(API, API, environment=chosen, static=False)
            except ChildFailed:
                if self._port.is_asked_for or is_free(port) or attempt == _START_TRIES:
                    raise
                continue  # another one was quicker
            self.api_port = port
            self._port.remember(port)
            return

    def stop(self) -> None:
        """All at once, the worker too; the servers follow when they are gone."""
        supervisor = self._system.supervisor
        names = [name for name in supervisor.names() if name in {WORKER, *ROLES}]
        with ThreadPoolExecutor(max(1, len(names))) as pool:
            for stopped in [pool.submit(supervisor.stop, name) for name in names]:
                stopped.result()
