"""The public contract as files: `python -m tests.golden.regenerate` writes them anew after a deliberate change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flowpilot_schemas.contract import public_messages
from flowpilot_schemas.history import FIELDS, TERMINAL_EVENTS
from flowpilot_schemas.topics import Topics

DIRECTORY = Path(__file__).parent


def contract() -> dict[str, dict[str, Any]]:
    """File name to content: a JSON Schema for each message, named by its type, and the history events' fields."""
    schemas = {message.name: message.schema() for message in public_messages(Topics()) if message.name != "history"}
    files = {f"{name}.json": schema for name, schema in schemas.items()}
    files["history.json"] = {
        name: {
            "required": [field for field in fields if not field.endswith("?")],
            "optional": [field.rstrip("?") for field in fields if field.endswith("?")],
            "terminal": name in TERMINAL_EVENTS,
        }
        for name, fields in FIELDS.items()
    }
    return files


def text(content: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all files and remove those of messages that are no more."""
    files = contract()
    for stale in {path.name for path in DIRECTORY.glob("*.json")} - files.keys():
        (DIRECTORY / stale).unlink()
    for name, content in files.items():
        (DIRECTORY / name).write_text(text(content), encoding="utf-8")


if __name__ == "__main__":
    main()
