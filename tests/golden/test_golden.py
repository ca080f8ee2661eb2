"""A change of a message is a change of the public contract: it shows here, and is made on purpose."""

from __future__ import annotations

import json
import re

import pytest
from pydantic import BaseModel

from flowpilot_schemas import messages
from flowpilot_schemas.codec import parse
from flowpilot_schemas.contract import public_messages
from flowpilot_schemas.topics import Topics
from tests.golden.regenerate import DIRECTORY, contract, text

FILES = contract()
HOW = "the public contract changed; if that is meant: python -m tests.golden.regenerate, and look at the difference"


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_contract_is_as_recorded(name: str) -> None:
    recorded = DIRECTORY / name
    assert recorded.exists(), HOW
    assert text(FILES[name]) == recorded.read_text(encoding="utf-8"), HOW


def test_no_message_is_forgotten() -> None:
    declared = {
        model.model_fields["type"].default
        for model in vars(messages).values()
        if isinstance(model, type) and issubclass(model, BaseModel) and "type" in model.model_fields
    }
    assert declared <= {message.name for message in public_messages(Topics())}


def test_the_step_message_that_foreign_workers_are_shown_is_one() -> None:
    page = (DIRECTORY.parents[1] / "examples" / "workers" / "README.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    value = json.loads(shown)
    parse(messages.StepReady, value)
    assert value.keys() | {"args", "last_heartbeat"} == messages.StepReady.model_fields.keys()


def test_every_file_is_a_message() -> None:
    assert {path.name for path in DIRECTORY.glob("*.json")} == set(FILES), HOW
