"""Where fuzzing begins: examples of every public message, made from the JSON Schemas in tests/golden."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden"
EXECUTION = "c66e4a16-8185-50e7-a0b4-7ab3a77f66d5"
_TEXTS = {
    "execution": EXECUTION,
    "retry": f"{EXECUTION}.1",
    "task_id": f"{EXECUTION}/0/a/1",
    "idempotency_key": f"{EXECUTION}/0/a",
    "topic": "patients",
    "not_after": "2026-01-31T00:00:00.000Z",
    "started_at": "2026-01-31T00:00:00.000Z",
    "name": "a",
    "step": "a",
    "queue": "q",
    "version": "1",
    "start": "registration",
}


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """The golden files but the history's, by name."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(GOLDEN.glob("*.json"))}
    del found["history"]
    return found


@cache
def history() -> dict[str, dict[str, list[str]]]:
    """The history events: type to its required and optional fields."""
    found: dict[str, dict[str, list[str]]] = json.loads((GOLDEN / "history.json").read_text("utf-8"))
    return found


def examples(name: str) -> list[dict[str, Any]]:
    """Of a message: one with what it needs, and one with all that it may have."""
    schema = schemas()[name]
    return [_example(schema, schema, full, "") for full in (False, True)]


def _example(schema: dict[str, Any], root: dict[str, Any], full: bool, name: str) -> Any:
    if "$ref" in schema:
        return _example(root["$defs"][schema["$ref"].rpartition("/")[2]], root, full, name)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][-1 if full else 0]
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], root, full, name)
    match schema.get("type"):
        case "object":
            wanted = schema.get("properties", {})
            needed = schema.get("required", ())
            found = {
                key: _example(held, root, full, key)
                for key, held in wanted.items()
                if full or key in needed or key in ("v", "type")
            }
            more = schema.get("additionalProperties")
            return found | ({"n": _example(more, root, full, "")} if full and isinstance(more, dict) else {})
        case "array":
            items = schema.get("prefixItems") or [schema.get("items", {})]
            few = full or schema.get("minItems")
            return [_example(item, root, full, name) for item in items] if few else []
        case "integer" | "number":
            return max(schema.get("minimum", 1), 1 if full else 0)
        case "boolean":
            return full
        case "string":
            return _TEXTS.get(name, "x")
        case _:
            return {"n": [1, None, "x"]} if full else None


@cache
def words() -> tuple[str, ...]:
    """Every field's name and constant of the public messages, and the texts that stand in the examples."""
    found: dict[str, None] = dict.fromkeys((*_TEXTS.values(), *history(), EXECUTION, "fp-hops=1"))
    open_schemas: list[Any] = list(schemas().values())
    while open_schemas:
        held = open_schemas.pop()
        if isinstance(held, dict):
            found |= dict.fromkeys(held.get("properties", ()) if isinstance(held.get("properties"), dict) else ())
            told = [held.get("const"), *(held.get("enum") or ())]
            found |= dict.fromkeys(text for text in told if isinstance(text, str))
            open_schemas.extend(held.values())
        elif isinstance(held, list):
            open_schemas.extend(held)
    for kinds in history().values():
        found |= dict.fromkeys((*kinds["required"], *kinds["optional"]))
    return tuple(found)
