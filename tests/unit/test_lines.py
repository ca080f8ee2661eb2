"""Reading a file that another process appends to."""

from __future__ import annotations

from pathlib import Path

from tests.lines import whole_lines


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert whole_lines(path) == []
    path.write_text('{"call": 1}\n\n{"call": 2, "partition')
    assert whole_lines(path) == ['{"call": 1}', ""]
