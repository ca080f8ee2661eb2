"""The public contract as files: `python -m tests.golden.regenerate` writes them anew after a deliberate change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flowpilot_schemas import messages, triggers
from flowpilot_schemas.definition import DefinitionPointer, WorkflowDefinition
from flowpilot_schemas.history import FIELDS, TERMINAL_EVENTS

DIRECTORY = Path(__file__).parent


def contract() -> dict[str, dict[str, Any]]:
    """File name to content: a JSON Schema for each message, named by its type, and the history events' fields."""
    models: dict[str, type[BaseModel]] = {
        "trigger": messages.Trigger,
        "definition": WorkflowDefinition,
        "definition-pointer": DefinitionPointer,
    }
    for model in (*vars(messages).values(), *vars(triggers).values()):
        if isinstance(model, type) and issubclass(model, BaseModel) and "type" in model.model_fields:
            models[model.model_fields["type"].default] = model
    files: dict[str, dict[str, Any]] = {f"{name}.json": model.model_json_schema() for name, model in models.items()}
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
