"""An execution followed until it ends, as plain values out of the audit record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flowpilot.adapters.postgres.engine import connect
from flowpilot.adapters.postgres.progress import Progress
from flowpilot.app.database import explained
from flowpilot.app.executions import Fields, graph_of, moment, standing
from flowpilot.settings import Settings


class Follower:
    """Looks again and again; the fields are named as `executions.show_execution` names them."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self._settings, self._progress = settings, progress
        self._tasks: dict[str, Fields] = {}

    def look(self) -> tuple[Fields, list[Fields]] | None:
        """The run as it stands, and the tasks that changed since the last look; None: the audit knows none yet.

        Raises `DatabaseUnreachable`, `DatabaseRefused`; then it can be asked again.
        """
        with explained(self._settings):
            seen = self._progress.look()
        if seen is None:
            return None
        run, rows = seen
        graph = graph_of(self._progress.definition)
        steps = {step["step"]: step for step in graph}
        changed = [{**steps.get(row.step_name, {}), **standing(row), "error": row.error} for row in rows]
        self._tasks.update((task["step"], task) for task in changed)
        found = {
            "execution": run.execution_id,
            "run": run.run,
            "workflow": run.workflow_name,
            "version": run.workflow_version,
            "status": run.status,
            "started_at": moment(run.started_at),
            "finished_at": moment(run.finished_at),
            "parent": run.parent,
            "errors": run.errors,
            "reason": run.reason,
            "graph": graph,
            "tasks": list(self._tasks.values()),
        }
        return found, changed


@contextmanager
def following(settings: Settings, execution: str) -> Iterator[Follower]:
    """A follower of `execution`, with a connection of its own. Raises `DatabaseAddressError`."""
    engine = connect(settings.database_url.get_secret_value(), application="flowpilot-watch", pool_size=1)
    try:
        yield Follower(settings, Progress(engine, execution))
    finally:
        engine.dispose()
