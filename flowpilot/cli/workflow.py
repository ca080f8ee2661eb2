"""`flowpilot workflow apply|list|show|delete|validate`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowpilot.cli.begin import begin
from flowpilot.cli.failures import CommandFailed, Exit, explain
from flowpilot.cli.output import Format, Output, line, record, rows, say, table

if TYPE_CHECKING:
    from flowpilot_schemas.definition import StepDefinition, WorkflowDefinition

app = typer.Typer(
    name="workflow",
    help="Register workflows, look at them, check and delete them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="A registered workflow.", metavar="NAME")]


@app.command()
def apply(
    workflow: Annotated[str, typer.Argument(help="MODULE:WORKFLOW or path/file.py:name.", metavar="WORKFLOW")],
    output: Output = Format.TABLE,
) -> None:
    """Register WORKFLOW, and make this version the current one.

    \b
    Examples:
      flowpilot workflow apply examples/patient_onboarding.py:onboarding

    Running executions keep the version they were started with. A deleted workflow comes back.

    Triggers and starts by name take it from now on.
    """
    from flowpilot.app.workflows import apply_workflow
    from flowpilot.cli.loading import load_workflow

    loaded = load_workflow(workflow)
    definition, added = asyncio.run(apply_workflow(begin(kafka=True), loaded))
    if output is Format.TABLE:
        was = "registered" if added else "was registered already"
        say(f"{definition.name} version {definition.version} {was} and is the current version")
    else:
        fields = {"workflow": definition.name, "version": definition.version, "definition": definition.hash}
        record({**fields, "added": added}, output)


@app.command("list")
def list_workflows(output: Output = Format.TABLE) -> None:
    """Every workflow with its current version, steps and triggers.

    \b
    Examples:
      flowpilot workflow list
      flowpilot workflow list -o json
    """
    from flowpilot.app.workflows import current_workflows, summary

    found = [summary(definition) for definition in asyncio.run(current_workflows(begin(kafka=True)))]
    if output is Format.TABLE:
        for row in found:
            row["steps"] = len(row["steps"])
            for name in ("queues", "triggers"):
                row[name] = ", ".join(row[name])
    remedy = "no workflow is registered; `flowpilot workflow apply MODULE:WORKFLOW` registers one"
    rows(found, ("workflow", "version", "steps", "queues", "triggers"), output, empty=remedy)


@app.command()
def show(
    name: Name,
    version: Annotated[
        str | None, typer.Option("--version", help="Not the current version but this one.", metavar="VERSION")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """A workflow's versions; triggers, steps and input of one.

    \b
    Examples:
      flowpilot workflow show patient-onboarding
      flowpilot workflow show patient-onboarding --version 1
      flowpilot workflow show patient-onboarding -o json | jq .input_schema
    """
    from flowpilot.app.workflows import described, workflow_versions

    found = asyncio.run(workflow_versions(begin(kafka=True), name))
    current, registered = found
    wanted = current or registered[-1]
    if version is not None:
        named = {definition.version: definition for definition in registered}
        if version not in named:
            listed = ", ".join(named)
            raise CommandFailed(f"workflow {name!r} has no version {version!r}; it has {listed}", Exit.NOT_FOUND)
        wanted = named[version]
    if output is Format.TABLE:
        _print_workflow(wanted, current, registered)
        return
    record(described(wanted, found), output)


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Delete a workflow with all its versions.

    \b
    Examples:
      flowpilot workflow delete patient-onboarding
      flowpilot workflow delete patient-onboarding --yes          where nobody can be asked

    Running executions finish, so leave its workers running until they have. Executions and audit stay.
    It stays deleted, also if a worker that has it starts again, until `flowpilot workflow apply` brings it back.

    Its triggers end, and nothing starts it any more.
    """
    from flowpilot.app.workflows import delete_workflow

    if not yes and not sys.stdin.isatty():
        raise CommandFailed(
            f"nobody is here to confirm: write `flowpilot workflow delete {name} --yes`", Exit.USAGE
        )
    settings = begin(kafka=True)
    if not yes:
        _confirm(settings, name)
    versions = asyncio.run(delete_workflow(settings, name))
    if output is Format.TABLE:
        say(f"{name} is deleted ({_versions(versions)}): no trigger and no start takes it any more")
        say("running executions finish, while workers serve them; executions and audit stay")
        say("it stays deleted, also if its workers start again, until `flowpilot workflow apply MODULE:WORKFLOW`")
    else:
        record({"workflow": name, "deleted": versions}, output)


@app.command()
def validate(
    workflows: Annotated[
        list[str], typer.Argument(help="MODULE:WORKFLOW or path/file.py:name.", metavar="WORKFLOW...")
    ],
    registered: Annotated[
        bool, typer.Option("--registered", help="Compare with what is registered, too; needs Kafka.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Check workflows as a worker would, without any server.

    \b
    Examples:
      flowpilot workflow validate examples/patient_onboarding.py:onboarding
      flowpilot workflow validate shop.flows:orders shop.flows:returns
      flowpilot workflow validate shop.flows:orders --registered      would Kafka's definitions refuse it?

    Exit code 0: all are valid; 1: some are not, each with a sentence.
    """
    from flowpilot.app.workflows import standing
    from flowpilot.cli.loading import load_workflow
    from flowpilot.ports.definitions import VersionConflict

    checked: list[dict[str, Any]] = []
    found: list[WorkflowDefinition] = []
    for reference in workflows:
        try:
            definition = load_workflow(reference).definition
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything; the others are checked all the same
            checked.append({"reference": reference, "problem": explain(error)[0]})
            continue
        found.append(definition)
        fields = {"workflow": definition.name, "version": definition.version, "steps": len(definition.steps)}
        checked.append({"reference": reference, **fields, "definition": definition.hash, "problem": None})
    if registered:
        valid = [row for row in checked if row["problem"] is None]
        for row, definition, stands in zip(
            valid, found, asyncio.run(standing(begin(kafka=True), found)), strict=True
        ):
            row["registered"] = stands
            if stands == "changed":
                row["problem"] = str(VersionConflict(definition.name, definition.version))
    problems = [row for row in checked if row["problem"] is not None]
    if output is Format.TABLE:
        sound = [row for row in checked if row["problem"] is None]
        columns = ("reference", "workflow", "version", "steps", *(["registered"] if registered else []))
        if sound:
            table(sound, columns)
        for row in problems:
            say(f"error: {row['reference']}: {row['problem']}")
    else:
        rows(checked, (), output, empty="")
    if problems:
        raise typer.Exit(Exit.ERROR)


def _confirm(settings: Any, name: str) -> None:
    from flowpilot.app.workflows import workflow_versions

    current, registered = asyncio.run(workflow_versions(settings, name))
    topics = [trigger.topic for trigger in current.triggers] if current is not None else []
    ends = f"; triggers on {', '.join(topics)} end" if topics else ""
    versions = _versions([definition.version for definition in registered])
    if not typer.confirm(f"Delete workflow {name} ({versions}{ends})?", err=True):
        raise CommandFailed("nothing was deleted")


def _versions(versions: Sequence[str]) -> str:
    return f"version{'' if len(versions) == 1 else 's'} {', '.join(versions)}"


def _print_workflow(
    wanted: WorkflowDefinition, current: WorkflowDefinition | None, registered: Sequence[WorkflowDefinition]
) -> None:
    from flowpilot.authoring.durations import as_text
    from flowpilot.cli.graph import graph

    versions = [found.version + (" (current)" if found == current else "") for found in registered]
    triggers = [
        trigger.topic + (f" unique by {trigger.unique_by}" if trigger.unique_by else "")
        for trigger in wanted.triggers
    ]
    record(
        {
            "workflow": wanted.name,
            "version": wanted.version,
            "versions": ", ".join(versions),
            "description": wanted.description or None,
            "triggers": ", ".join(triggers) or None,
            "timeout": None if wanted.timeout_ms is None else as_text(wanted.timeout_ms),
            "dedupe_window": as_text(wanted.dedupe_window_ms),
            "retry_window": as_text(wanted.retry_window_ms),
            "definition": wanted.hash,
            "input": wanted.input_schema,
        },
        Format.TABLE,
    )
    line()
    drawn = graph(wanted)
    for drawn_line in drawn:
        line(drawn_line)
    if drawn:
        line()
    columns = ("step", "depends_on", "queue", "attempts", "backoff", "timeout", "heartbeat", "waits", "output")
    table([_step(step) for step in wanted.steps], columns)


def _step(step: StepDefinition) -> dict[str, Any]:
    from flowpilot.authoring.durations import as_text

    retry = step.retry
    late = "" if step.on_schedule_to_start == "fail" else f", then {step.on_schedule_to_start}"
    return {
        "step": step.name,
        "depends_on": ", ".join(step.depends_on),
        "queue": step.queue,
        "attempts": retry.max_attempts,
        "backoff": f"{as_text(retry.initial_ms)} ×{retry.backoff:g} ≤{as_text(retry.max_interval_ms)}",
        "timeout": as_text(step.start_to_close_ms),
        "heartbeat": as_text(step.heartbeat_ms),
        "waits": as_text(step.schedule_to_start_ms) + late,
        "output": "yes" if step.output else "",
    }
