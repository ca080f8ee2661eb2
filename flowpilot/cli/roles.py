"""`flowpilot setup` and the roles: engine, router, worker, audit, API. Each is one process, ended by a signal."""

from __future__ import annotations

from typing import Annotated

import typer

from flowpilot.cli.begin import begin
from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.output import Format, Output, record, rows, say

Queues = Annotated[
    list[str] | None,
    typer.Option("--queue", "-q", help="Serve this queue alone (again for more).", metavar="QUEUE"),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the root."""
    for command in (setup, engine, router, worker, audit, api):
        app.command()(command)


RaiseRules = Annotated[
    bool,
    typer.Option("--raise-rules", help="Permit this release's rule sets without looking at engines."),
]


def setup(output: Output = Format.TABLE, raise_rules: RaiseRules = False) -> None:
    """Create topics and tables, or mend them.

    \b
    Examples:
      flowpilot setup
      FLOWPILOT_EVENT_PARTITIONS=4 flowpilot setup        the count is fixed for life: a changed one is refused
      FLOWPILOT_REPLICATION_FACTOR=3 flowpilot setup      on a cluster of three brokers

    Running it again is harmless. When all engines are of this release it also permits the rule sets that came with
    it: from then on an engine of an earlier release stops.

    Needs Kafka (FLOWPILOT_BOOTSTRAP_SERVERS) and PostgreSQL (FLOWPILOT_DATABASE_URL).
    """
    from flowpilot.app.setup import setup as run_setup

    settings = begin(kafka=True)
    outcome = run_setup(settings, force_rules=raise_rules)
    for warning in outcome.warnings:
        say(f"warning: {warning}")
    topics = [{"topic": topic.topic, "outcome": topic.outcome} for topic in outcome.topics]
    if output is Format.TABLE:
        rows(topics, ("topic", "outcome"), output, empty="no topics")
        made = "created" if outcome.database_created else "up to date"
        say(f"database {outcome.database}: {made}")
        if outcome.rules is not None:
            say(outcome.rules.detail)
        say("next: flowpilot engine, flowpilot router, flowpilot audit and flowpilot worker MODULE:WORKFLOW")
    else:
        database = {"address": outcome.database, "created": outcome.database_created}
        rules = outcome.rules._asdict() if outcome.rules else None
        record({"topics": topics, "database": database, "rules": rules}, output)


def engine() -> None:
    """Run an engine: it keeps state and decides what is next.

    \b
    Examples:
      flowpilot engine
      FLOWPILOT_MEMBER_ID=engine-1 flowpilot engine       static membership: a restart moves no partition

    Start as many as there are partitions of the events topic; they share the executions.
    """
    from flowpilot.app.engine import run_engine

    begin()  # a wrong setting is told before the process is replaced
    run_engine()


def router() -> None:
    """Run a router: it starts an execution for each trigger record.

    \b
    Examples:
      flowpilot router

    It reads the topics that the current versions of workflows name, and waits for those not there yet.
    """
    import asyncio

    from flowpilot.app.router import run_router

    settings = begin("router")

    def ready(topics: frozenset[str]) -> None:
        say(f"router ready: reading {len(topics)} topic{'' if len(topics) == 1 else 's'}")

    raise typer.Exit(asyncio.run(run_router(settings, ready)))


def worker(
    workflows: Annotated[
        list[str], typer.Argument(help="MODULE:WORKFLOW or path/file.py:name.", metavar="WORKFLOW...")
    ],
    queue: Queues = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", min=1, help="Handlers that run at once.", metavar="N")
    ] = None,
) -> None:
    """Run a worker: it runs the steps of WORKFLOW.

    \b
    Examples:
      flowpilot worker examples/patient_onboarding.py:onboarding
      flowpilot worker shop.flows:orders shop.flows:returns --concurrency 32
      flowpilot worker shop.flows:orders --queue notify   only the steps of this queue
      flowpilot worker v1/shop.py:orders v2/shop.py:orders   two versions, while one is rolled out

    Who serves what is shown by `flowpilot queue list`.

    It registers the workflow's definition, which becomes the current version if there is none yet.
    """
    import asyncio

    from flowpilot.app.worker import run_worker
    from flowpilot.cli.loading import load_workflow

    if workflows == ["list"]:
        raise CommandFailed("`flowpilot queue list` shows the workers of every queue", Exit.USAGE)
    settings = begin("worker")
    if concurrency is not None:
        settings = settings.model_copy(update={"worker_concurrency": concurrency})
    loaded = [load_workflow(reference) for reference in workflows]

    def ready(queues: list[str]) -> None:
        say(f"worker ready: serving {', '.join(queues)}")

    raise typer.Exit(asyncio.run(run_worker(settings, loaded, queue, ready)))


def audit() -> None:
    """Run an audit writer: it copies the history to PostgreSQL.

    \b
    Examples:
      flowpilot audit

    In order and exactly once. Executions do not wait for it: after a pause it catches up.
    """
    import asyncio

    from flowpilot.app.audit import run_audit

    settings = begin("audit")
    raise typer.Exit(asyncio.run(run_audit(settings, lambda: say("audit ready"))))


def api() -> None:
    """Run the HTTP API: it starts executions and shows them.

    \b
    Examples:
      flowpilot api
      FLOWPILOT_API_PORT=9000 flowpilot api
      FLOWPILOT_API_TOKENS=ops=SECRET,billing=OTHER FLOWPILOT_API_HOST=0.0.0.0 flowpilot api

      curl --json '{"patient_id": "p-17"}' 'http://127.0.0.1:8080/workflows/patient-onboarding/executions?wait=10s'

    Without tokens it listens on this machine alone. Start as many as you like; GET /openapi.json describes it.
    """
    import asyncio

    from flowpilot.api.server import run_api

    settings = begin("api")
    raise typer.Exit(asyncio.run(run_api(settings, lambda address: say(f"api ready: {address}"))))
