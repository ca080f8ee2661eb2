"""`workflow`, `step` and `step_dependency` as the definitions topic says, one change at a time: they are few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.orm import Session

from flowpilot.adapters.postgres.models import Step, Workflow, step_dependency
from flowpilot.ports.audit import DefinitionChange, Pointed, Registered, Removed


def apply_definitions(session: Session, changes: Iterable[DefinitionChange]) -> None:
    """Apply the changes in their order. Executions that waited for a definition are linked to it."""
    for change in changes:
        match change:
            case Registered():
                _register(session, change)
            case Pointed():
                _point(session, change)
            case Removed():
                _remove(session, change)


def _register(session: Session, change: Registered) -> None:
    definition = change.definition
    if _stored(session, definition.name, definition.version) is None:
        _insert(session, change)


def _point(session: Session, change: Pointed) -> None:
    stored = _stored(session, change.workflow, change.version)
    if change.definition is not None:
        if stored is None:
            _insert(session, change.definition)
        elif not change.current and stored.definition != change.hash:
            # Two may register one version at the same time; the version's own pointer says which it is.
            _remove(session, Removed(change.workflow, change.version))
            _insert(session, change.definition, is_current=stored.is_current)
    if change.current:
        is_current = Workflow.version == change.version
        session.execute(
            update(Workflow)
            .where(Workflow.name == change.workflow, Workflow.is_current != is_current)
            .values(is_current=is_current)
        )


def _remove(session: Session, change: Removed) -> None:
    if change.hash is not None:
        condition = Workflow.definition == change.hash
    elif change.version is not None:
        condition = (Workflow.name == change.workflow) & (Workflow.version == change.version)
    else:
        condition = Workflow.name == change.workflow
    for workflow_id in session.scalars(select(Workflow.id).where(condition)).all():
        _unlink(session, workflow_id)
    session.execute(delete(Workflow).where(condition))


class _Stored(NamedTuple):
    definition: str
    is_current: bool


def _stored(session: Session, name: str, version: str) -> _Stored | None:
    row = session.execute(
        select(Workflow.definition, Workflow.is_current).where(Workflow.name == name, Workflow.version == version)
    ).one_or_none()
    return None if row is None else _Stored(*row)


def _insert(session: Session, change: Registered, *, is_current: bool = False) -> None:
    definition = change.definition
    workflow_id = session.scalars(
        insert(Workflow).returning(Workflow.id),
        {
            "name": definition.name,
            "version": definition.version,
            "definition": change.hash,
            "description": definition.description,
            "body": definition.model_dump(mode="json"),
            "is_current": is_current,
            "registered_at": datetime.fromtimestamp(change.at / 1000, UTC),
        },
    ).one()
    rows = [
        {
            "workflow_id": workflow_id,
            "name": step.name,
            "step_order": order,
            "queue": step.queue,
            "body": step.model_dump(mode="json"),
        }
        for order, step in enumerate(definition.steps)
    ]
    ids = session.scalars(insert(Step).returning(Step.id, sort_by_parameter_order=True), rows).all()
    edges = [
        {"step_id": ids[order], "depends_on_id": ids[definition.index[parent]]}
        for order, step in enumerate(definition.steps)
        for parent in step.depends_on
    ]
    if edges:
        session.execute(insert(step_dependency), edges)
    _link(session, workflow_id)


def _link(session: Session, workflow_id: int) -> None:
    """Give executions and tasks that name this version their references to it."""
    waiting = (
        "e.workflow_id IS NULL AND (e.workflow_name, e.workflow_version) = "
        "(SELECT name, version FROM workflow WHERE id = :id)"
    )
    for ids in _ranges(session, waiting, workflow_id):
        session.execute(
            text(f"UPDATE workflow_execution e SET workflow_id = :id WHERE {waiting} AND {_BETWEEN}"), ids
        )
        session.execute(
            text(
                "UPDATE task_execution t SET step_id = s.id FROM workflow_execution e "
                "JOIN step s ON s.workflow_id = e.workflow_id "
                "WHERE e.workflow_id = :id AND t.workflow_execution_id = e.id AND s.name = t.step_name "
                f"AND t.step_id IS NULL AND {_BETWEEN}"
            ),
            ids,
        )


def _unlink(session: Session, workflow_id: int) -> None:
    """Take them back: what `ON DELETE SET NULL` does, in statements that end in time."""
    linked = "e.workflow_id = :id"
    for ids in _ranges(session, linked, workflow_id):
        session.execute(
            text(
                "UPDATE task_execution t SET step_id = NULL FROM workflow_execution e "
                f"WHERE {linked} AND {_BETWEEN} AND t.workflow_execution_id = e.id AND t.step_id IS NOT NULL"
            ),
            ids,
        )
        session.execute(
            text(f"UPDATE workflow_execution e SET workflow_id = NULL WHERE {linked} AND {_BETWEEN}"), ids
        )


# A statement has a time limit, and a workflow may have millions of executions.
_AT_ONCE = 20_000
_BETWEEN = "e.id >= :first AND e.id < :end"


def _ranges(session: Session, condition: str, workflow_id: int) -> Iterator[dict[str, int]]:
    """The executions of which `condition` holds, by ranges of their ids."""
    bounds = text(f"SELECT min(e.id), max(e.id) FROM workflow_execution e WHERE {condition}")
    first, last = session.execute(bounds, {"id": workflow_id}).one()
    if first is not None:
        for start in range(first, last + 1, _AT_ONCE):
            yield {"id": workflow_id, "first": start, "end": start + _AT_ONCE}
