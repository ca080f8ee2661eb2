"""Which of the user's files have changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

State = tuple[int, int, int]


class Watch:
    """Files, and `folders` of which every `*.py` counts. A change is told once it has lasted for one look:
    an editor may write a file in several steps."""

    def __init__(self) -> None:
        self._files: set[Path] = set()
        self._folders: set[Path] = set()
        self._told: dict[Path, State] = {}
        self._seen: dict[Path, State] = {}

    def look_at(self, files: Iterable[Path], folders: Iterable[Path] = ()) -> None:
        """Watch these from now on; what changed before this call and was not told yet is told still."""
        self._files, self._folders = set(files), set(folders)
        now = self._look()
        self._told = {path: self._told.get(path, state) for path, state in now.items()}
        self._seen = now

    def changed(self) -> list[Path]:
        """The files that are new, changed or gone since this was last told; empty while they still change."""
        now = self._look()
        settled, self._seen = now == self._seen, now
        if not settled:
            return []
        different = {path for path, _ in now.items() ^ self._told.items()}
        # An editor that replaces a file takes it away for a moment; one that was really removed fails to load.
        self._told = now
        return sorted(different)

    def _look(self) -> dict[Path, State]:
        paths = self._files.union(*(folder.glob("*.py") for folder in self._folders))
        found = {}
        for path in paths:
            try:
                info = path.stat()
            except OSError:
                continue
            found[path] = (info.st_mtime_ns, info.st_size, info.st_ino)
        return found
