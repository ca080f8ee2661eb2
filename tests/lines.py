"""Files that other processes append to while a test reads them."""

from __future__ import annotations

from pathlib import Path


def whole_lines(path: Path) -> list[str]:
    """The lines of a file, or none if it is not there. A line that is still being written is left out.

    An append is one write, but a reader may see a part of it where it crosses a page.
    """
    if not path.exists():
        return []
    return [line[:-1] for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
