"""`flowpilot execution start|list|show|watch|cancel|retry|verify`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowpilot.cli.begin import begin, reach
from flowpilot.cli.divergence import print_divergences
from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.output import Format, Output, record, rows, say, value
from flowpilot.cli.watch import ExecutionId, check_id, show, watch

if TYPE_CHECKING:
    from flowpilot.authoring import Workflow
    from flowpilot.client.handle import Handle
    from flowpilot.settings import Settings

app = typer.Typer(
    name="execution",
    help="Start executions, look at them, cancel and retry them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Wait = Annotated[bool, typer.Option("--wait", "-w", help="Wait for the end and print the output.")]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0, help="Wait at most so long.", metavar="SECONDS")]


@app.command()
def start(
    workflow: Annotated[str, typer.Argument(help="A registered name, or MODULE:WORKFLOW.", metavar="WORKFLOW")],
    input: Annotated[
        str | None, typer.Option("--input", "-i", help="JSON, @file, or - for stdin.", metavar="JSON")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", "-k", help="The same key, the same execution.", metavar="KEY")
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Not the current version but this one.", metavar="VERSION")
    ] = None,
    if_exists: Annotated[
        str, typer.Option("--if-exists", help="What to do if the key has one: return or fail.", metavar="WHAT")
    ] = "return",
    wait: Wait = False,
    timeout: Timeout = None,
    output: Output = Format.TABLE,
) -> None:
    """Start an execution, and print its id or --wait for its output.

    \b
    Examples:
      flowpilot execution start patient-onboarding --input '{"patient_id": "p-17"}'
      flowpilot execution start patient-onboarding --input @patient.json --key p-17 --wait --timeout 60
      jq -c .patient backup.json | flowpilot execution start patient-onboarding --input - --wait

    With --wait the exit code tells the end: 0 completed, 3 failed, 4 not in time, 5 cancelled. Whether the key has
    an execution already is surely told by --wait and --if-exists fail, else only if the audit record tells at once.
    """

    if if_exists not in ("return", "fail"):
        raise CommandFailed(f"--if-exists takes return or fail, not {if_exists!r}", Exit.USAGE)
    settings = begin()
    wanted: str | Workflow = workflow
    if ":" in workflow or workflow.endswith(".py"):
        from flowpilot.cli.loading import load_workflow

        wanted = load_workflow(workflow)
    given = _read_input(input)
    reach(settings)
    from flowpilot.authoring.errors import InputInvalid

    waits = wait or timeout is not None
    try:
        asyncio.run(_start(settings, wanted, given, key, version, if_exists, waits, timeout, output))
    except InputInvalid as error:
        if input is not None:
            raise
        raise CommandFailed(f"{error}; none was given: --input takes it", Exit.USAGE) from error


async def _start(
    settings: Settings,
    workflow: str | Workflow,
    given: Any,
    key: str | None,
    version: str | None,
    if_exists: Any,
    wait: bool,
    timeout: float | None,
    output: Format,
) -> None:
    from flowpilot.app.client import Client

    glance = None
    if key is not None and not wait and if_exists == "return":
        from flowpilot.cli.earlier import Glance

        glance = Glance(settings, workflow if isinstance(workflow, str) else workflow.definition.name, key)
    async with Client(settings) as client:
        handle = await client.start(workflow, given, key=key, version=version, if_exists=if_exists)
        await _tell(handle, wait, timeout, output)
        if glance is not None:
            sent = given if isinstance(workflow, str) else workflow.input_json(given)
            if sentence := glance.sentence(handle.start, sent):
                say(sentence)


async def _tell(handle: Handle, wait: bool, timeout: float | None, output: Format) -> None:
    """The execution's id; or, if it is waited for, its output."""
    if not wait:
        if output is Format.TABLE:
            print(handle.id)
            if sys.stderr.isatty():
                say(f"`flowpilot execution watch {handle.id}` follows it")
        else:
            record({"execution": handle.id}, output)
        return
    say(f"execution {handle.id}")
    try:
        result = await handle.result(timeout)
    finally:
        if handle.seen is not None and handle.seen.existed:
            other = ", with another input, which it keeps" if handle.seen.conflict else ""
            say(f"it was there before{other}; `--if-exists fail` refuses that")
    if output is Format.TABLE:
        value(result)
    else:
        record({"execution": handle.id, "status": "completed", "output": result}, output)


def _read_input(given: str | None) -> Any:
    from flowpilot_schemas.codec import BadRecord, decode

    if given is None:
        return None
    if given == "-":
        data, where = sys.stdin.buffer.read(), "stdin"
    elif given.startswith("@"):
        where = given[1:]
        try:
            data = Path(where).read_bytes()
        except OSError as error:
            raise CommandFailed(f"the input file {where} cannot be read: {error.strerror}", Exit.USAGE) from error
    else:
        data, where = given.encode(errors="surrogateescape"), "--input"
    try:
        return decode(data)
    except BadRecord as bad:
        hint = "; write JSON, @file or -" if where == "--input" else ""
        if hint and os.path.isfile(given):
            hint = f"; did you mean @{given}?"
        raise CommandFailed(f"{where}: {bad.detail.replace('the record', 'it', 1)}{hint}", Exit.USAGE) from bad


@app.command("list")
def list_executions(
    status: Annotated[
        str | None, typer.Option("--status", "-s", help="Only these: running, failed, …", metavar="STATUS")
    ] = None,
    workflow: Annotated[
        str | None, typer.Option("--workflow", help="Only of this workflow.", metavar="NAME")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", "-k", help="Only with this key.", metavar="KEY")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000, help="At most so many.")] = 20,
    output: Output = Format.TABLE,
) -> None:
    """The newest executions first.

    \b
    Examples:
      flowpilot execution list
      flowpilot execution list --status failed --workflow patient-onboarding
      flowpilot execution list --limit 1000 -o jsonl | jq -r .execution

    It reads the audit record, which follows the executions by a moment.
    """
    from flowpilot.adapters.postgres.queries import Filter
    from flowpilot.app import executions

    if status is not None and status not in executions.STATUSES:
        raise CommandFailed(f"--status takes one of {', '.join(executions.STATUSES)}, not {status!r}", Exit.USAGE)
    wanted = Filter(status=status, workflow=workflow, key=key)
    found = executions.list_executions(begin(), wanted, limit=limit).items
    columns = ("execution", "workflow", "version", "status", "steps", "key", "started_at", "finished_at")
    of = f" of a workflow {workflow!r}; `flowpilot workflow list` has the names" if workflow is not None else ""
    rows(found, columns, output, empty=f"no executions{of}")


app.command()(show)
app.command()(watch)


@app.command()
def cancel(
    execution: ExecutionId,
    reason: Annotated[
        str, typer.Option("--reason", "-r", help="Why; it stands in the audit record.", metavar="TEXT")
    ],
) -> None:
    """Cancel an execution.

    \b
    Examples:
      flowpilot execution cancel 6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11 --reason "registered twice"

    Who asked (your user name, or FLOWPILOT_ACTOR) and why stand in the audit record.

    Steps that wait are not begun, handlers that run are told.
    """
    from flowpilot.app.client import Client

    async def ask() -> None:
        async with Client(begin(kafka=True)) as client:
            await client.cancel(execution, reason)

    asyncio.run(ask())
    say(f"asked to cancel {execution}; `flowpilot execution show {execution}` shows what came of it")


@app.command()
def retry(
    execution: ExecutionId,
    reason: Annotated[
        str, typer.Option("--reason", "-r", help="Why; it stands in the audit record.", metavar="TEXT")
    ],
    from_start: Annotated[
        bool, typer.Option("--from-start", help="All steps again, not from the failed ones on.")
    ] = False,
    version: Annotated[
        str | None,
        typer.Option("--version", help="With --from-start: this version of the workflow.", metavar="VERSION"),
    ] = None,
    wait: Wait = False,
    timeout: Timeout = None,
    output: Output = Format.TABLE,
) -> None:
    """Retry an execution that failed or was cancelled, as a new one.

    \b
    Examples:
      flowpilot execution retry 6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11 --reason "mail server is back"
      flowpilot execution retry 6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11 --reason fixed --wait --timeout 60
      flowpilot execution retry 6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11 --reason "new rules" --from-start --version 2

    Steps that completed are not run again: their results are taken over. Who asked (your user name, or
    FLOWPILOT_ACTOR) and why stand in the audit record. With --wait the exit code tells the end, as with start.

    Prints the new execution's id, or with --wait its output.
    """
    settings = begin(kafka=True)

    async def ask() -> None:
        from flowpilot.app.client import Client

        async with Client(settings) as client:
            handle = await client.retry(execution, reason, from_start=from_start, version=version)
            await _tell(handle, wait or timeout is not None, timeout, output)

    asyncio.run(ask())


@app.command()
def verify(
    execution: Annotated[
        str | None, typer.Argument(help="One execution; without it, the whole audit.", metavar="[ID]")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Check the audit record against itself.

    \b
    Examples:
      flowpilot execution verify
      flowpilot execution verify 6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11

    Exit code 0: no difference but acknowledged ones; 1: there are others. All are listed on stdout.

    Hash chains, gaps, and every row against the events. What cannot be mended, such as a record that somebody wrote
    to the history topic, is acknowledged: `flowpilot divergence acknowledge`.
    """
    from flowpilot.app import divergences, executions

    if execution is not None:
        check_id(execution)
    settings = begin()
    if execution is not None and executions.show_execution(settings, execution) is None:
        raise CommandFailed(f"the audit does not know execution {execution}", Exit.NOT_FOUND)
    found = divergences.differences(settings, execution)
    print_divergences(found, output, empty="no differences: the audit is sound")
    if any(each["acknowledged"] is None for each in found):
        raise typer.Exit(Exit.ERROR)
