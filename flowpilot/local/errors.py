"""What can go wrong when embedded services are set up, each with what to do next."""

from __future__ import annotations

from flowpilot.core.errors import FlowPilotError


class LocalError(FlowPilotError):
    """The root of every error of the embedded services; its text is one sentence for the user."""


class DownloadFailed(LocalError):
    """A file could not be fetched, or what was fetched is not what the lock file names."""


class NoJava(LocalError):
    """There is no Java runtime of version 17 or later."""


class NoPostgres(LocalError):
    """There are no PostgreSQL binaries that fit the data directory."""


class PortTaken(LocalError):
    """A port that was asked for is another program's."""


class StateInUse(LocalError):
    """Another living supervisor owns the state directory."""


class ChildFailed(LocalError):
    """A child process ended, or did not become ready in time.

    `name`: the child; `log_tail`: the end of its log file, to look for the cause in.
    """

    def __init__(self, name: str, what: str, log_tail: str, log_path: str) -> None:
        super().__init__(f"{name} {what}; see {log_path}\n{log_tail}".rstrip())
        self.name = name
        self.log_tail = log_tail
