"""`flowpilot execution show|watch`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowpilot.cli.begin import begin
from flowpilot.cli.display import Display, display, print_steps
from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.output import Format, Output, record, say, table

if TYPE_CHECKING:
    from flowpilot.app.following import Follower

Fields = Mapping[str, Any]

# Seconds: between looks into the audit; until an execution that it does not know is taken for none.
LOOK_EVERY, KNOWN_WITHIN = 0.5, 5.0

ExecutionId = Annotated[str, typer.Argument(help="The execution's id.", metavar="ID")]


def check_id(execution: str) -> None:
    """Raises `CommandFailed` if that is no execution's id, but a workflow's name or half an id."""
    from flowpilot_schemas.ids import is_execution_id

    if not is_execution_id(execution):
        raise CommandFailed(
            f"{execution!r} is not an execution id; `flowpilot execution list` shows some", Exit.USAGE
        )


def show(
    execution: ExecutionId,
    run: Annotated[int | None, typer.Option("--run", help="An earlier run of the same key.", metavar="RUN")] = None,
    history: Annotated[bool, typer.Option("--history", help="Its history events as well.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """One execution, its steps as a tree with attempts and errors.

    \b
    Examples:
      flowpilot execution show 6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11
      flowpilot execution show 6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11 --history
      flowpilot execution show 6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11 -o json | jq .tasks

    -o json has every field of every step. `flowpilot execution watch` follows one that runs.

    Also what it retries, its retries, and what a step that is ready waits for.
    """
    from flowpilot.app import executions
    from flowpilot.app.members import add_waits

    check_id(execution)
    settings = begin()
    found = executions.show_execution(settings, execution, run=run)
    if found is None:
        which = f"run {run} of execution {execution}" if run is not None else f"execution {execution}"
        raise CommandFailed(
            f"the audit does not know {which}; `flowpilot execution list` shows those it knows", Exit.NOT_FOUND
        )
    add_waits(settings, found)
    events = found["history"]
    if not history:
        del found["history"]
    if output is not Format.TABLE:
        record(found, output)
        return
    left_out = {"graph": found.pop("graph"), "tasks": found.pop("tasks")}
    found.pop("history", None)
    record({name: content for name, content in found.items() if content not in (None, [], {})}, output)
    if left_out["tasks"]:
        print()
        print_steps(left_out)
    if history:
        print()
        common = ("v", "type", "execution", "run", "seq", "at", "cause", "step", "attempt")
        listed = [
            {**event, "detail": {name: content for name, content in event.items() if name not in common} or None}
            for event in events
        ]
        table(listed, ("seq", "at", "type", "step", "attempt", "detail"))


def watch(
    execution: ExecutionId,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, help="Watch at most so long.", metavar="SECONDS")
    ] = None,
) -> None:
    """Follow an execution until it ends.

    \b
    Examples:
      flowpilot execution watch 6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11
      flowpilot execution watch "$(flowpilot execution start patient-onboarding -i @patient.json)"
      flowpilot execution watch 6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11 --timeout 60 > steps.log

    The exit code tells the end: 0 completed, 3 failed, 4 not in time, 5 cancelled. Ctrl-C ends the watching alone.
    It reads the audit record, which follows the execution by a moment.

    Its steps are a tree that changes in place; piped, there is a line for each change.
    """
    from flowpilot.app.following import following

    settings = begin()
    check_id(execution)
    try:
        with following(settings, execution) as follower, display() as shown:
            found = follow(follower, shown, execution, timeout)
    except KeyboardInterrupt:
        say(f"no longer watching; execution {execution} goes on (`flowpilot execution cancel` would end it)")
        raise typer.Exit(Exit.INTERRUPTED) from None
    _end(execution, found)


def follow(
    follower: Follower,
    shown: Display,
    execution: str,
    timeout: float | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Fields:
    """The execution once it has ended.

    Raises `ResultTimeout`, `CommandFailed` if the audit does not come to know it; `DatabaseUnreachable`,
    `DatabaseRefused` if the first look fails: later ones are tried again.
    """
    from flowpilot.app.database import DatabaseRefused, DatabaseUnreachable
    from flowpilot.client.errors import ResultTimeout

    known_by = clock() + KNOWN_WITHIN
    deadline = None if timeout is None else clock() + timeout
    has_answered, is_known, is_lost = False, False, False
    while True:
        looked = clock()
        try:
            seen = follower.look()
            has_answered = True
            if is_lost:
                known_by, is_lost = clock() + KNOWN_WITHIN, False
                shown.trouble(None)
        except (DatabaseUnreachable, DatabaseRefused) as error:
            if not has_answered:
                raise
            if not is_lost:
                is_lost = True
                shown.trouble(str(error))
            seen = None
        if seen is not None:
            is_known = True
            shown.show(*seen)
            if seen[0]["finished_at"] is not None:
                return seen[0]
        now = clock()
        is_late = deadline is not None and now >= deadline
        if not is_known and not is_lost and (is_late or now >= known_by):
            raise CommandFailed(
                f"the audit does not know execution {execution}: is the id right, and does `flowpilot audit` run? "
                "`flowpilot execution list` shows those it knows",
                Exit.NOT_FOUND,
            )
        if is_late:
            raise ResultTimeout(execution, timeout or 0.0)
        pause = max(looked + LOOK_EVERY - now, 0.05)
        sleep(pause if deadline is None else max(min(pause, deadline - now), 0.0))


def _end(execution: str, found: Fields) -> None:
    from flowpilot.client.errors import ExecutionCancelled, ExecutionFailed, ExecutionRefused

    match found["status"]:
        case "completed":
            return
        case "cancelled":
            raise ExecutionCancelled(execution, found["reason"])
        case "failed":
            errors = found["errors"] if isinstance(found["errors"], dict) else {}
            # A wide execution may fail in thousands of steps: its first ones tell enough.
            raise ExecutionFailed(execution, dict(list(errors.items())[:5]), found["reason"])
        case _:
            raise ExecutionRefused(execution, found["reason"])
