"""`.flowpilot/dev.env`: how other terminals in the folder find what `flowpilot dev` has started.

A lock on it, held for as long as `flowpilot dev` runs and let go of by the kernel, tells whether its content is
true (see `flowpilot.settings.dev_state`). It stays afterwards, so that commands can say that nothing runs.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from flowpilot.local.errors import LocalError, StateInUse
from flowpilot.settings import DEV_FILE

# Seconds: a command that looks whether we run holds a shared lock for an instant.
_PATIENCE = 1.0


class DevFile:
    """The file of `folder`, locked from the beginning; a context manager. Raises `StateInUse`, `LocalError`."""

    def __init__(self, folder: Path) -> None:
        path = folder / DEV_FILE
        try:
            path.parent.mkdir(exist_ok=True)
            ignored = path.parent / ".gitignore"
            if not ignored.exists():
                ignored.write_text("*\n")
            # A database's password will stand in it.
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
        except OSError as error:
            raise LocalError(
                f"cannot write {error.filename}: {error.strerror}; go to a folder of your own"
            ) from error
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                by = self._file.readline().rpartition(", ")[2].strip()
                self._file.close()
                raise StateInUse(
                    f"`flowpilot dev` runs in this folder already ({by or 'starting'}): stop it with Ctrl-C there, "
                    "or go to another folder"
                ) from None
        self.publish({})

    def publish(self, values: Mapping[str, str]) -> None:
        """Make `values` (by environment name) the settings of other terminals; none while starting."""
        lines = [f"# flowpilot dev, process {os.getpid()}", *(f"{name}={value}" for name, value in values.items())]
        self._file.seek(0)
        self._file.truncate()
        self._file.write("\n".join(lines) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._file.close()
