"""The tables of the audit record.

`workflow`, `step`, `step_dependency` mirror the definitions topic; `workflow_execution` and `task_execution`
hold where each execution stands; `audit_event` holds every history event, byte by byte, and is append only;
`trigger_fate` holds the trigger records that started nothing.
All are written by the audit writer alone. Relationships raise if they were not loaded on purpose, so that a
list can never run one query a row. jsonb holds what queries need; NUL characters, which PostgreSQL cannot
store, stand there as U+2400. The exact bytes are in `audit_event.body`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

Json = Any

# Identifiers are compared byte by byte: quicker than by a language's rules, and the same on every server.
Identifier = Text(collation="C")
Moment = DateTime(timezone=True)


class Base(DeclarativeBase):
    """All tables, with constraint names that do not depend on the server."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        int: BigInteger(),
        bytes: LargeBinary(),
        datetime: Moment,
    }


class Workflow(Base):
    """One version of a workflow. `definition` is the hash that executions are pinned to."""

    __tablename__ = "workflow"
    __table_args__ = (UniqueConstraint("name", "version"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(Identifier)
    version: Mapped[str] = mapped_column(Identifier)
    definition: Mapped[str] = mapped_column(Identifier, index=True)
    description: Mapped[str]
    body: Mapped[Json] = mapped_column(JSONB)
    is_current: Mapped[bool] = mapped_column(server_default=text("false"))
    registered_at: Mapped[datetime]

    steps: Mapped[list[Step]] = relationship(
        back_populates="workflow",
        order_by="Step.step_order",
        cascade="all, delete-orphan",
        passive_deletes=True,
        lazy="raise",
    )
    executions: Mapped[list[WorkflowExecution]] = relationship(
        back_populates="workflow", passive_deletes=True, lazy="raise"
    )


step_dependency = Table(
    "step_dependency",
    Base.metadata,
    Column("step_id", BigInteger, ForeignKey("step.id", ondelete="CASCADE"), primary_key=True),
    Column("depends_on_id", BigInteger, ForeignKey("step.id", ondelete="CASCADE"), primary_key=True, index=True),
)


class Step(Base):
    """A node of a workflow version's DAG, in a topological order (`step_order`, from 0)."""

    __tablename__ = "step"
    __table_args__ = (UniqueConstraint("workflow_id", "name"), UniqueConstraint("workflow_id", "step_order"))

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    workflow_id: Mapped[int] = mapped_column(ForeignKey("workflow.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Identifier)
    step_order: Mapped[int] = mapped_column(Integer)
    queue: Mapped[str] = mapped_column(Identifier)
    body: Mapped[Json] = mapped_column(JSONB)

    workflow: Mapped[Workflow] = relationship(back_populates="steps", lazy="raise")
    depends_on: Mapped[list[Step]] = relationship(
        secondary=step_dependency,
        primaryjoin=lambda: Step.id == step_dependency.c.step_id,
        secondaryjoin=lambda: Step.id == step_dependency.c.depends_on_id,
        back_populates="dependents",
        order_by="Step.step_order",
        passive_deletes=True,
        lazy="raise",
    )
    dependents: Mapped[list[Step]] = relationship(
        secondary=step_dependency,
        primaryjoin=lambda: Step.id == step_dependency.c.depends_on_id,
        secondaryjoin=lambda: Step.id == step_dependency.c.step_id,
        back_populates="depends_on",
        order_by="Step.step_order",
        passive_deletes=True,
        lazy="raise",
    )


class WorkflowExecution(Base):
    """Where one run of an execution stands; `seq` is that of the history event that changed the row last.

    Of a retry, `created_by` asked for it, and `retry_reason` is why. `parent` is what it retries. `traceparent` is
    what it was started with, its own or that of what it retries.
    `run` is null in a stub: a parent of which nothing but its id is known.
    """

    __tablename__ = "workflow_execution"
    __table_args__ = (
        UniqueConstraint("execution_id", "run"),
        Index("uq_workflow_execution_stub", "execution_id", unique=True, postgresql_where=text("run IS NULL")),
        Index("ix_workflow_execution_status_id", "status", "id"),
        Index("ix_workflow_execution_workflow_name_id", "workflow_name", "id"),
        Index("ix_workflow_execution_started_at", "started_at"),
        Index(
            "ix_workflow_execution_origin",
            *("origin_topic", "origin_partition", "origin_offset"),
            postgresql_where=text("origin_topic IS NOT NULL"),
        ),
        Index("ix_workflow_execution_key", "key", postgresql_where=text("key IS NOT NULL")),
        Index(
            "ix_workflow_execution_parent",
            "parent_execution_id",
            postgresql_where=text("parent_execution_id IS NOT NULL"),
        ),
        {"postgresql_with": {"fillfactor": "85"}},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    execution_id: Mapped[str] = mapped_column(Identifier)
    run: Mapped[int | None]
    workflow_id: Mapped[int | None] = mapped_column(ForeignKey("workflow.id", ondelete="SET NULL"), index=True)
    workflow_name: Mapped[str | None] = mapped_column(Identifier)
    workflow_version: Mapped[str | None] = mapped_column(Identifier)
    definition: Mapped[str | None] = mapped_column(Identifier)
    key: Mapped[str | None] = mapped_column(Identifier)
    created_by: Mapped[str | None]
    origin_topic: Mapped[str | None]
    origin_topic_id: Mapped[str | None]
    origin_partition: Mapped[int | None] = mapped_column(Integer)
    origin_offset: Mapped[int | None]
    parent_execution_id: Mapped[int | None] = mapped_column(
        ForeignKey("workflow_execution.id", ondelete="SET NULL")
    )
    retry_reason: Mapped[str | None]
    traceparent: Mapped[str | None] = mapped_column(Identifier)
    status: Mapped[str] = mapped_column(Identifier)
    seq: Mapped[int]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    output: Mapped[Json | None] = mapped_column(JSONB)
    errors: Mapped[Json | None] = mapped_column(JSONB)
    reason: Mapped[str | None]

    workflow: Mapped[Workflow | None] = relationship(back_populates="executions", lazy="raise")
    parent: Mapped[WorkflowExecution | None] = relationship(
        back_populates="retries", remote_side=lambda: [WorkflowExecution.id], lazy="raise"
    )
    retries: Mapped[list[WorkflowExecution]] = relationship(
        back_populates="parent", order_by="WorkflowExecution.id", passive_deletes=True, lazy="raise"
    )
    tasks: Mapped[list[TaskExecution]] = relationship(
        back_populates="execution",
        order_by="TaskExecution.ready_at, TaskExecution.seq",
        cascade="all, delete-orphan",
        passive_deletes=True,
        lazy="raise",
    )


class TaskExecution(Base):
    """Where one step of one run stands, with its latest attempt; `seq` as in `WorkflowExecution`.

    A step that a retry took over as completed has no attempt here, and `taken_from` names whose output it is.
    """

    __tablename__ = "task_execution"
    __table_args__ = ({"postgresql_with": {"fillfactor": "85"}},)

    workflow_execution_id: Mapped[int] = mapped_column(
        ForeignKey("workflow_execution.id", ondelete="CASCADE"), primary_key=True
    )
    step_name: Mapped[str] = mapped_column(Identifier, primary_key=True)
    step_id: Mapped[int | None] = mapped_column(ForeignKey("step.id", ondelete="SET NULL"), index=True)
    status: Mapped[str] = mapped_column(Identifier)
    attempt: Mapped[int] = mapped_column(Integer)
    seq: Mapped[int]
    taken_from: Mapped[str | None] = mapped_column(Identifier)
    worker_id: Mapped[str | None]
    broker_task_id: Mapped[str | None]
    ready_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    retry_at: Mapped[datetime | None]
    output: Mapped[Json | None] = mapped_column(JSONB)
    error: Mapped[Json | None] = mapped_column(JSONB)

    execution: Mapped[WorkflowExecution] = relationship(back_populates="tasks", lazy="raise")
    step: Mapped[Step | None] = relationship(lazy="raise")


class AuditEvent(Base):
    """A history event. `hash` = sha256(`prev_hash` ‖ `body`); a trigger refuses UPDATE, DELETE and TRUNCATE."""

    __tablename__ = "audit_event"

    execution_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    run: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(Identifier)
    at: Mapped[datetime]
    step: Mapped[str | None] = mapped_column(Identifier)
    attempt: Mapped[int | None] = mapped_column(Integer)
    topic: Mapped[str] = mapped_column(Identifier)
    partition: Mapped[int] = mapped_column(Integer)
    offset: Mapped[int]
    body: Mapped[bytes]
    prev_hash: Mapped[bytes]
    hash: Mapped[bytes]


class ConsumerOffset(Base):
    """The next offset to read of a partition, moved in the same transaction as what was read."""

    __tablename__ = "consumer_offset"

    topic: Mapped[str] = mapped_column(Identifier, primary_key=True)
    partition: Mapped[int] = mapped_column(Integer, primary_key=True)
    topic_id: Mapped[str] = mapped_column(Identifier)
    next_offset: Mapped[int]


class DeadLetterRow(Base):
    """A record nobody could process, once, however often it was reported. Times and coordinates are its own."""

    __tablename__ = "dead_letter"
    __table_args__ = (
        UniqueConstraint(
            *("topic", "partition", "offset", "timestamp", "source", "reason", "workflow"),
            name="uq_dead_letter_record",
            postgresql_nulls_not_distinct=True,
        ),
        # By topic: the constraint's own index.
        Index("ix_dead_letter_reason_id", "reason", "id"),
        Index("ix_dead_letter_workflow_id", "workflow", "id", postgresql_where=text("workflow IS NOT NULL")),
        Index("ix_dead_letter_reported_at", "reported_at"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    topic: Mapped[str] = mapped_column(Identifier)
    partition: Mapped[int] = mapped_column(Integer)
    offset: Mapped[int]
    timestamp: Mapped[int]
    source: Mapped[str] = mapped_column(Identifier)
    reason: Mapped[str] = mapped_column(Identifier)
    workflow: Mapped[str | None] = mapped_column(Identifier)
    detail: Mapped[str]
    key: Mapped[bytes | None]
    value: Mapped[bytes | None]
    headers: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))
    headers_left_out: Mapped[int | None] = mapped_column(Integer)
    size: Mapped[int]
    sha256: Mapped[str]
    truncated: Mapped[bool]
    topic_id: Mapped[str | None]
    reported_at: Mapped[datetime]


class TriggerFate(Base):
    """Trigger records that started nothing: filtered ones as ranges, one row a commit of the router, workflow and
    reason; and each that met an execution (`duplicate`, `key_conflict`), with the history event that says so."""

    __tablename__ = "trigger_fate"
    __table_args__ = (
        UniqueConstraint("execution_id", "run", "seq", name="uq_trigger_fate_event"),
        Index("ix_trigger_fate_offsets", "offsets", postgresql_using="gist"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    topic: Mapped[str] = mapped_column(Identifier)
    topic_id: Mapped[str]
    partition: Mapped[int] = mapped_column(Integer)
    offsets: Mapped[Any] = mapped_column(INT8MULTIRANGE)
    workflow: Mapped[str | None] = mapped_column(Identifier)
    fate: Mapped[str] = mapped_column(Identifier)
    reason: Mapped[str | None] = mapped_column(Identifier)
    execution_id: Mapped[str | None] = mapped_column(Identifier)
    run: Mapped[int | None]
    seq: Mapped[int | None]


class AuditDivergence(Base):
    """What should not be: a record that contradicts the audit or cannot be read.

    This table must stay empty; what an operator knows of is in `audit_acknowledgement`. Of a partition with very
    many, one row with the reason `further` stands for the rest, and `seq` is their number.
    """

    __tablename__ = "audit_divergence"
    __table_args__ = (
        UniqueConstraint("fingerprint", name="uq_audit_divergence_fingerprint"),
        Index("ix_audit_divergence_place", "topic", "partition"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    found_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    reason: Mapped[str] = mapped_column(Identifier)
    detail: Mapped[str]
    topic: Mapped[str] = mapped_column(Identifier)
    partition: Mapped[int] = mapped_column(Integer)
    offset: Mapped[int]
    execution_id: Mapped[str | None] = mapped_column(Identifier)
    run: Mapped[int | None]
    seq: Mapped[int | None]
    key: Mapped[bytes | None]
    body: Mapped[bytes | None]
    fingerprint: Mapped[str] = mapped_column(Identifier)


class AuditAcknowledgement(Base):
    """What an operator knows of and has given a reason for: a divergence, or a difference that `verify` finds.

    `fingerprint` is its content's, so that another one at the same place is not acknowledged with it.
    """

    __tablename__ = "audit_acknowledgement"

    fingerprint: Mapped[str] = mapped_column(Identifier, primary_key=True)
    acknowledged_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    actor: Mapped[str]
    reason: Mapped[str]
    what: Mapped[str]
