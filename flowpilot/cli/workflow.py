"""`flowpilot workflow apply|list`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from flowpilot.cli.begin import begin
from flowpilot.cli.output import Format, Output, record, rows, say

app = typer.Typer(
    name="workflow", help="Register workflows and see which there are.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def apply(
    workflow: Annotated[str, typer.Argument(help="MODULE:WORKFLOW or path/file.py:name.", metavar="WORKFLOW")],
    output: Output = Format.TABLE,
) -> None:
    """Register WORKFLOW and make this version the current one: triggers and starts by name take it from now on.

    \b
    Examples:
      flowpilot workflow apply examples/patient_onboarding.py:onboarding

    Running executions keep the version they were started with.
    """
    import asyncio

    from flowpilot.app.workflows import apply_workflow
    from flowpilot.cli.loading import load_workflow

    loaded = load_workflow(workflow)
    definition, added = asyncio.run(apply_workflow(begin(), loaded))
    if output is Format.TABLE:
        was = "registered" if added else "was registered already"
        say(f"{definition.name} version {definition.version} {was} and is the current version")
    else:
        fields = {"workflow": definition.name, "version": definition.version, "definition": definition.hash}
        record({**fields, "added": added}, output)


@app.command("list")
def list_workflows(output: Output = Format.TABLE) -> None:
    """Every workflow with its current version, its steps and the topics that trigger it.

    \b
    Examples:
      flowpilot workflow list
      flowpilot workflow list -o json
    """
    import asyncio

    from flowpilot.app.workflows import current_workflows

    as_table = output is Format.TABLE
    found: list[dict[str, object]] = [
        {
            "workflow": definition.name,
            "version": definition.version,
            "steps": len(definition.steps) if as_table else [step.name for step in definition.steps],
            "queues": _listed(definition.queues, as_table),
            "triggers": _listed([trigger.topic for trigger in definition.triggers], as_table),
            "description": definition.description,
            "definition": definition.hash,
        }
        for definition in asyncio.run(current_workflows(begin()))
    ]
    remedy = "no workflow is registered; `flowpilot workflow apply MODULE:WORKFLOW` registers one"
    rows(found, ("workflow", "version", "steps", "queues", "triggers"), output, empty=remedy)


def _listed(names: Sequence[str], as_table: bool) -> object:
    return ", ".join(names) if as_table else names
