"""The current rows of executions and their tasks, written in bulk. Each statement sets what changed, no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection

from flowpilot.adapters.postgres.bulk import EXECUTION_TYPES, TASK_TYPES, Shapes, identifiers, literal, run, source
from flowpilot.ports.audit import UNKNOWN, Changes, Head, Row, RunKey

_INSERTED = tuple(
    name
    for name in EXECUTION_TYPES
    if name not in {"id", "execution_id", "run", "workflow_id", "parent_execution_id"}
)
_WORKFLOW_OF_X = "(SELECT w.id FROM workflow w WHERE w.name = x.workflow_name AND w.version = x.workflow_version)"


class Known(NamedTuple):
    """What is stored of the runs of a batch: the ids of their rows and their newest events."""

    ids: dict[RunKey, int]
    heads: dict[RunKey, Head]


def known_runs(connection: Connection, runs: Iterable[RunKey]) -> Known:
    """Rows and heads of those `runs` that have some."""
    keys = list(runs)
    found = Known({}, {})
    rows = run(
        connection,
        f"""
        SELECT x.n, e.id, a.seq, a.hash
        FROM {source([("execution_id", "text"), ("run", "bigint"), ("n", "integer")])}
        LEFT JOIN workflow_execution e ON e.execution_id = x.execution_id AND e.run = x.run
        LEFT JOIN LATERAL (
            SELECT seq, hash FROM audit_event WHERE execution_id = x.execution_id AND run = x.run
            ORDER BY execution_id DESC, run DESC, seq DESC LIMIT 1
        ) a ON true
        WHERE e.id IS NOT NULL OR a.seq IS NOT NULL
        """,
        literal("text", [key.execution for key in keys]),
        literal("bigint", [key.run for key in keys]),
        literal("integer", range(len(keys))),
    )
    for n, row_id, seq, hash_ in rows:
        if row_id is not None:
            found.ids[keys[n]] = row_id
        if seq is not None:
            found.heads[keys[n]] = Head(seq, bytes(hash_))
    return found


def write_rows(connection: Connection, changes: Changes, known: Known) -> None:
    """Bring `workflow_execution` and `task_execution` to where `changes` says they stand.

    A run that has events but no row any more was deleted by somebody: it stays deleted.
    """
    ids = dict(known.ids)
    new = {key: row for key, row in changes.executions.items() if key not in ids and key not in known.heads}
    if new:
        ids.update(_adopt_stubs(connection, new))
        ids.update(_insert_executions(connection, {key: row for key, row in new.items() if key not in ids}))
    old = Shapes(EXECUTION_TYPES)
    for run_key, row in changes.executions.items():
        if run_key in known.ids:
            old.add((ids[run_key],), row)
    _update_executions(connection, old)
    if changes.parents:
        _link_parents(connection, {key: parent for key, parent in changes.parents.items() if key in ids}, ids)
    born, changed = Shapes(TASK_TYPES), Shapes(TASK_TYPES)
    for task_key, row in changes.tasks.items():
        row_id = ids.get(RunKey(task_key.execution, task_key.run))
        if row_id is not None:
            key = (row_id, task_key.step, changes.attempts[task_key])
            (born if task_key in changes.born else changed).add(key, row)
    for shape, (keys, rows) in changed.groups.items():
        if _update_tasks(connection, changed, shape, keys, rows) < len(rows):
            _upsert_tasks(connection, changed, shape, keys, rows)
    for shape, (keys, rows) in born.groups.items():
        _upsert_tasks(connection, born, shape, keys, rows)


def _adopt_stubs(connection: Connection, new: Mapping[RunKey, Row]) -> dict[RunKey, int]:
    """Stubs of executions that turn up after all: each becomes the row of the execution's first run here."""
    first: dict[str, int] = {}
    for key in new:
        first[key.execution] = min(key.run, first.get(key.execution, key.run))
    rows = run(
        connection,
        f"""
        UPDATE workflow_execution t SET run = x.run
        FROM {source([("execution_id", "text"), ("run", "bigint")])}
        WHERE t.execution_id = x.execution_id AND t.run IS NULL RETURNING t.execution_id, t.run, t.id
        """,
        literal("text", first),
        literal("bigint", first.values()),
    ).all()
    adopted = {RunKey(execution, number): row_id for execution, number, row_id in rows}
    if adopted:
        shapes = Shapes(EXECUTION_TYPES)
        for key, row_id in adopted.items():
            shapes.add((row_id,), new[key])
        _update_executions(connection, shapes)
    return adopted


def _insert_executions(connection: Connection, new: Mapping[RunKey, Row]) -> dict[RunKey, int]:
    if not new:
        return {}
    rows = [{"status": UNKNOWN, **row} for row in new.values()]
    columns = [("execution_id", "text"), ("run", "bigint"), *((name, EXECUTION_TYPES[name]) for name in _INSERTED)]
    names = identifiers(name for name, _ in columns)
    inserted = run(
        connection,
        f"""
        INSERT INTO workflow_execution ({names}, workflow_id)
        SELECT x.*, {_WORKFLOW_OF_X} FROM {source(columns)}
        RETURNING execution_id, run, id
        """,
        literal("text", [key.execution for key in new]),
        literal("bigint", [key.run for key in new]),
        *(literal(EXECUTION_TYPES[name], [row.get(name) for row in rows]) for name in _INSERTED),
    )
    return {RunKey(execution, number): row_id for execution, number, row_id in inserted}


def _update_executions(connection: Connection, shapes: Shapes) -> None:
    for shape, (keys, rows) in shapes.groups.items():
        settings = [f'"{name}" = x."{name}"' for name in shape]
        if "workflow_name" in shape:
            settings.append(f"workflow_id = {_WORKFLOW_OF_X}")
        columns = [("row_id", "bigint"), *shapes.columns(shape)]
        run(
            connection,
            f"UPDATE workflow_execution t SET {', '.join(settings)} FROM {source(columns)} "
            "WHERE t.id = x.row_id AND t.seq < x.seq",
            literal("bigint", [row_id for (row_id,) in keys]),
            *shapes.arrays(shape, rows),
        )


def _link_parents(connection: Connection, parents: Mapping[RunKey, str], ids: Mapping[RunKey, int]) -> None:
    """A retry's parent is the newest earlier run of the execution it names; one nobody knows gets a stub."""
    run(
        connection,
        f"""
        INSERT INTO workflow_execution (execution_id, status, seq)
        SELECT DISTINCT x.parent, '{UNKNOWN}', 0 FROM {source([("run", "bigint"), ("parent", "text")])}
        WHERE NOT EXISTS (
            SELECT FROM workflow_execution e WHERE e.execution_id = x.parent AND (e.run IS NULL OR e.run < x.run)
        )
        """,
        literal("bigint", [key.run for key in parents]),
        literal("text", parents.values()),
    )
    run(
        connection,
        f"""
        UPDATE workflow_execution t SET parent_execution_id = (
            SELECT p.id FROM workflow_execution p
            WHERE p.execution_id = x.parent AND (p.run IS NULL OR p.run < x.run)
            ORDER BY p.run DESC NULLS LAST LIMIT 1
        )
        FROM {source([("row_id", "bigint"), ("run", "bigint"), ("parent", "text")])} WHERE t.id = x.row_id
        """,
        literal("bigint", [ids[key] for key in parents]),
        literal("bigint", [key.run for key in parents]),
        literal("text", parents.values()),
    )


_TASK_KEY = (("row_id", "bigint"), ("step_name", "text"), ("first_attempt", "integer"))


def _update_tasks(
    connection: Connection,
    shapes: Shapes,
    shape: Sequence[str],
    keys: Sequence[tuple[Any, ...]],
    rows: Sequence[Row],
) -> int:
    settings = ", ".join(f'"{name}" = x."{name}"' for name in shape)
    return run(
        connection,
        f"UPDATE task_execution t SET {settings} FROM {source([*_TASK_KEY, *shapes.columns(shape)])} "
        "WHERE t.workflow_execution_id = x.row_id AND t.step_name = x.step_name AND t.seq < x.seq",
        *_task_keys(keys),
        *shapes.arrays(shape, rows),
    ).rowcount


def _upsert_tasks(
    connection: Connection,
    shapes: Shapes,
    shape: Sequence[str],
    keys: Sequence[tuple[Any, ...]],
    rows: Sequence[Row],
) -> None:
    settings = ", ".join(f'"{name}" = EXCLUDED."{name}"' for name in shape)
    names = "".join(f', "{name}"' for name in shape)
    values = "".join(f', x."{name}"' for name in shape)
    if "attempt" not in shape:
        names, values = f"{names}, attempt", f"{values}, x.first_attempt"
    run(
        connection,
        f"""
        INSERT INTO task_execution (workflow_execution_id, step_name, step_id{names})
        SELECT e.id, x.step_name, s.id{values} FROM {source([*_TASK_KEY, *shapes.columns(shape)])}
        JOIN workflow_execution e ON e.id = x.row_id
        LEFT JOIN step s ON s.workflow_id = e.workflow_id AND s.name = x.step_name
        ON CONFLICT (workflow_execution_id, step_name) DO UPDATE SET {settings}
        WHERE task_execution.seq < EXCLUDED.seq
        """,
        *_task_keys(keys),
        *shapes.arrays(shape, rows),
    )


def _task_keys(keys: Sequence[tuple[Any, ...]]) -> list[str]:
    return [literal(kind, values) for (_, kind), values in zip(_TASK_KEY, zip(*keys, strict=True), strict=True)]
