"""What `flowpilot dev` says when it is ready."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from flowpilot.local.dev.example import example
from flowpilot.local.dev.found import FoundWorkflow
from flowpilot.masking import mask_address

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
        f"  PostgreSQL  {mask_address(database)}",
        f"  API         {api} ({api}/openapi.json describes it)",
        f"  data        {data}",
        f"  workflows   {named or NO_WORKFLOW}",
    ]
    lines.append("In another terminal, in this folder:")
    if workflows:
        lines.append(f"  {start_command(workflows[0])}")
    if triggered := next((workflow for workflow in workflows if workflow.triggers), None):
        lines.append(f"  {publish_command(triggered)}")
    return [*lines, "  flowpilot execution list"]


def start_command(workflow: FoundWorkflow) -> str:
    """A command that starts an execution with an input that its schema takes."""
    command = f"flowpilot execution start {workflow.name} --wait"
    if workflow.input_schema is None:
        return command
    return f"{command} --input {_given(workflow)}"


def publish_command(workflow: FoundWorkflow) -> str:
    """A command that publishes such an input on the first topic that starts the workflow."""
    return f"echo {_given(workflow)} | flowpilot trigger publish {workflow.triggers[0]} --wait"


def _given(workflow: FoundWorkflow) -> str:
    schema = workflow.input_schema
    value = {} if schema is None else example(schema)
    return shlex.quote(json.dumps(value, ensure_ascii=False))
