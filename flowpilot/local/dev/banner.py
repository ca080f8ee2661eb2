"""What `flowpilot dev` says when it is ready."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from flowpilot.local.dev.found import FoundWorkflow

NO_WORKFLOW = "none yet; `flowpilot init` writes an example"


def banner(
    *,
    seconds: float,
    servers: str,
    database: str,
    api: str,
    data: str,
    workflows: Sequence[FoundWorkflow],
    error: str | None,
) -> list[str]:
    """At most ten lines: addresses, where the data are, what to type next."""
    named = ", ".join(f"{workflow.name} ({workflow.reference})" for workflow in workflows[:3])
    if len(workflows) > 3:
        named += f" and {len(workflows) - 3} more"
    if error is not None:
        named = f"none until this is mended: {error}"
    lines = [
        f"FlowPilot is ready after {seconds:.1f} s. Ctrl-C stops everything.",
        f"  Kafka       {servers}",
        f"  PostgreSQL  {database}",
        f"  API         {api} ({api}/openapi.json describes it)",
        f"  data        {data}",
        f"  workflows   {named or NO_WORKFLOW}",
    ]
    lines.append("In another terminal, in this folder:")
    if workflows:
        lines.append(f"  {start_command(workflows[0])}")
    return [*lines, "  flowpilot execution list"]


def start_command(workflow: FoundWorkflow) -> str:
    """A command that starts an execution with an input that its schema takes."""
    command = f"flowpilot execution start {workflow.name} --wait"
    if workflow.input_schema is None:
        return command
    given = json.dumps(example(workflow.input_schema), ensure_ascii=False)
    return f"{command} --input {shlex.quote(given)}"


def example(schema: dict[str, Any], root: dict[str, Any] | None = None, depth: int = 0) -> Any:
    """A small value of a JSON Schema: its own example or default, else what its type suggests."""
    root = schema if root is None else root
    if "$ref" in schema and depth < 8:
        target: Any = root
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            target = target.get(part, {}) if isinstance(target, dict) else {}
        return example(target, root, depth + 1)
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key) and depth < 8:
            return example(schema[key][0], root, depth + 1)
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        wanted = schema.get("required", [])
        return {name: example(properties.get(name, {}), root, depth + 1) for name in wanted if depth < 8}
    if kind == "array":
        items = schema.get("items", {})
        return [example(items, root, depth + 1) for _ in range(schema.get("minItems", 0)) if depth < 8]
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    return {"boolean": True, "null": None}.get(str(kind), _text(schema))


def _text(schema: dict[str, Any]) -> str:
    return _FORMATS.get(schema.get("format", ""), str(schema.get("title", "text")).lower())


_FORMATS = {
    "date": "2030-01-31",
    "date-time": "2030-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "email": "ada@example.com",
    "uri": "https://example.com",
    "uuid": "6f1c0b1e-0d0f-4d0e-8a53-2f7f4c1f0b11",
}
