"""A change of a message is a change of the public contract: it shows here, and is made on purpose."""

from __future__ import annotations

import pytest

from tests.golden.regenerate import DIRECTORY, contract, text

FILES = contract()
HOW = "the public contract changed; if that is meant: python -m tests.golden.regenerate, and look at the difference"


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_contract_is_as_recorded(name: str) -> None:
    recorded = DIRECTORY / name
    assert recorded.exists(), HOW
    assert text(FILES[name]) == recorded.read_text(encoding="utf-8"), HOW


def test_every_file_is_a_message() -> None:
    assert {path.name for path in DIRECTORY.glob("*.json")} == set(FILES), HOW
