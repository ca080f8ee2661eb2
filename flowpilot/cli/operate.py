"""`flowpilot config show`, `topic list|plan|apply`, `db upgrade`, `queue list`: looking after a FlowPilot."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from flowpilot.cli.begin import begin
from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.output import Format, Output, line, record, rows, say

_group = partial(typer.Typer, no_args_is_help=True, rich_markup_mode=None)
config = _group(name="config", help="See the settings in force.")
topic = _group(name="topic", help="See FlowPilot's topics, create them, mend them.")
db = _group(name="db", help="Look after the database of the audit record.")
queue = _group(name="queue", help="See who serves which steps.")


# So many of a worker's definitions are named in a table.
_VERSIONS = 8


def add_to(app: typer.Typer) -> None:
    """Add the groups to the root."""
    for group in (config, topic, db, queue):
        app.add_typer(group)


# A group of one command is still a group.
for _single in (config, db, queue):
    _single.callback()(lambda: None)


@config.command("show")
def show_config(output: Output = Format.TABLE) -> None:
    """Every setting: its value, and where it comes from.

    \b
    Examples:
      flowpilot config show
      flowpilot config show -o json | jq '.[] | select(.source != "default")'

    The environment goes before .env, that before a running `flowpilot dev`, that before the default.

    Passwords are masked.
    """
    from flowpilot.settings import explain_settings

    found = [setting._asdict() for setting in explain_settings()]
    rows(found, ("name", "value", "source"), output, empty="no settings")


@topic.command("list")
def list_all(output: Output = Format.TABLE) -> None:
    """FlowPilot's topics and the state they are in.

    \b
    Examples:
      flowpilot topic list
      flowpilot topic list -o jsonl | jq -r 'select(.state != "ok") | .topic'
    """
    from flowpilot.app.topics import list_topics

    found = list_topics(begin())
    rows(found, ("topic", "partitions", "cleanup", "state", "detail"), output, empty="no topics")


@topic.command()
def plan(output: Output = Format.TABLE) -> None:
    """What `topic apply` and `setup` would create or change.

    \b
    Examples:
      flowpilot topic plan
      flowpilot topic plan -o json

    Exit code 0: it would work; 1: a partition count is another one than the settings say, which is refused.

    Nothing is done.
    """
    from flowpilot.app.topics import plan_topics

    planned = [step._asdict() for step in plan_topics(begin())]
    steps = [step for step in planned if step["action"] != "keep"]
    shown = steps if output is Format.TABLE else planned
    nothing = f"nothing to do: {len(planned)} topics are as declared"
    rows(shown, ("action", "topic", "partitions", "cleanup", "detail"), output, empty=nothing)
    if any(step["action"] == "refuse" for step in planned):
        say("refused: the count is fixed for life; set FLOWPILOT_EVENT_PARTITIONS back or use another namespace")
        raise typer.Exit(Exit.ERROR)


@topic.command()
def apply(output: Output = Format.TABLE) -> None:
    """Create missing topics, and mend those that differ.

    \b
    Examples:
      flowpilot topic apply

    The topics' part of `flowpilot setup`: no database is needed. Running it again is harmless.
    """
    from flowpilot.app.topics import apply_topics

    outcomes = [outcome._asdict() for outcome in apply_topics(begin())]
    rows(outcomes, ("topic", "outcome"), output, empty="no topics")


@topic.command()
def acls(
    role: Annotated[
        list[str] | None, typer.Option("--role", metavar="ROLE", help="Only this role; may be repeated.")
    ] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option("--trigger-topic", metavar="TOPIC", help="A topic that workflows read; may be repeated."),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """The Kafka permissions that each role needs, for kafka-acls.sh.

    \b
    Examples:
      flowpilot topic acls
      flowpilot topic acls --role router --trigger-topic orders.placed
      flowpilot topic acls -o json | jq -r '.[] | select(.role == "worker") | .name'

    Without --trigger-topic the topics that the registered workflows read are asked of Kafka. Principals are named
    after the roles: replace them by your own. Nothing is changed.
    """
    from flowpilot.adapters.kafka.admin import AdminError
    from flowpilot.app.acls import as_command, declared, trigger_topics
    from flowpilot.ports.log import LogUnavailable
    from flowpilot_schemas.access import ROLES

    settings = begin()
    wanted = [known for known in ROLES if not role or known in role]
    if unknown := sorted(set(role or ()) - ROLES.keys()):
        raise CommandFailed(f"there is no role {unknown[0]!r}; the roles are {', '.join(ROLES)}")
    topics = trigger or []
    if not trigger:
        try:
            topics = trigger_topics(settings)
        except (AdminError, LogUnavailable) as error:
            say(f"without the topics that workflows read ({error}): name them with --trigger-topic")
    found = declared(settings, wanted, topics)
    if output is not Format.TABLE:
        rows([grant._asdict() for grant in found], (), output, empty="")
        return
    for name in wanted:
        line(f"# {name}: {ROLES[name]}")
        for grant in found:
            if grant.role == name:
                line(as_command(grant, settings.bootstrap_servers))


@db.command()
def upgrade(output: Output = Format.TABLE) -> None:
    """Create the database, or bring its tables to this release.

    \b
    Examples:
      flowpilot db upgrade

    The database's part of `flowpilot setup`: no Kafka is needed. Running it again is harmless, also at once
    from several places.
    """
    from flowpilot.app.database import address, prepare_database, schema_state

    settings = begin()
    created = prepare_database(settings)
    at = schema_state(settings).current
    if output is Format.TABLE:
        say(f"database {address(settings)}: {'created, ' if created else ''}at revision {at}")
    else:
        record({"database": address(settings), "created": created, "revision": at}, output)


@queue.command("list")
def list_queues(output: Output = Format.TABLE) -> None:
    """Every queue: its workers, their versions, how many steps wait.

    \b
    Examples:
      flowpilot queue list
      flowpilot queue list -o jsonl | jq 'select(.worker == null) | .queue'

    A row a worker; a queue that nobody serves has a row without one. `lag` is the whole queue's. A worker in
    another language need not announce its versions. One that was killed is shown until its session ends.
    """
    from flowpilot.app import topics

    found = topics.list_queues(begin())
    if output is Format.TABLE:
        found = [
            {
                **row,
                "workflows": ", ".join(row["workflows"]),
                "worker": row["worker"] or "nobody",
                "partitions": ", ".join(map(str, row["partitions"])),
                "versions": _versions(row),
            }
            for row in found
        ]
    remedy = "no queue: no workflow is registered; `flowpilot worker MODULE:WORKFLOW` registers one"
    rows(found, ("queue", "workflows", "lag", "worker", "host", "partitions", "versions"), output, empty=remedy)


def _versions(row: dict[str, Any]) -> str:
    """`orders 1, 2; mail 7`, of the first few; empty if the worker does not announce any."""
    by_workflow: dict[str, list[str]] = {}
    for served in (row["versions"] or [])[:_VERSIONS]:
        by_workflow.setdefault(served["workflow"], []).append(served["version"])
    more = len((row["versions"] or [])[_VERSIONS:]) + row["versions_left_out"]
    named = "; ".join(f"{workflow} {', '.join(versions)}" for workflow, versions in by_workflow.items())
    return f"{named} and {more:,} more" if more else named
