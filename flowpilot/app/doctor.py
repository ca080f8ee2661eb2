"""What is wrong with a FlowPilot, and the command that mends it. Looks only; changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal, NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from flowpilot.adapters.kafka.admin import AdminError, KafkaAdmin
from flowpilot.adapters.kafka.groups import KafkaGroups
from flowpilot.adapters.postgres.engine import DatabaseAddressError, connect
from flowpilot.adapters.postgres.migrations import SchemaState
from flowpilot.adapters.postgres.queries import AuditQueries
from flowpilot.app import trigger_topics
from flowpilot.app.database import DatabaseRefused, DatabaseUnreachable, address, querying, schema_state
from flowpilot.app.members import look, unannounced
from flowpilot.app.serving import Seen, unserved
from flowpilot.app.topics import registered_queues
from flowpilot.app.trigger_topics import BETWEEN, lags, troubles
from flowpilot.ports.definitions import Definitions
from flowpilot.ports.log import LogUnavailable
from flowpilot.ports.members import LiveMembers
from flowpilot.settings import Settings
from flowpilot_schemas.mac import INVALID, MISSING

# Records: a role that is so far behind does not keep up, or has only just been started.
MANY = 1_000
_PATIENCE = 4.0  # seconds
_NAMED = 10


class Check(NamedTuple):
    """One finding; `remedy` is what to do about it, a command where there is one."""

    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str | None = None


def examine(settings: Settings) -> Iterator[Check]:
    """The checks in the order in which one depends on another; one that cannot be made is left out."""
    admin = KafkaAdmin(settings, timeout=_PATIENCE)
    try:
        queues = registered_queues(settings, admin)
    except (AdminError, LogUnavailable) as error:
        yield Check("kafka", "fail", str(error), "flowpilot dev, or set FLOWPILOT_BOOTSTRAP_SERVERS")
    else:
        yield Check("kafka", "ok", settings.bootstrap_servers)
        yield from _guarded("topics", lambda: _topics(admin, queues))
    yield from _database(settings)
    try:
        there = admin.exists(topic.name for topic in settings.topics.core())
    except AdminError:
        return
    if len(there) == len(settings.topics.core()):
        yield from _guarded("roles", lambda: _roles(settings, queues))
        looked = cache(lambda: asyncio.run(look(settings)))  # a failure is not kept: it is found by each check
        yield from _guarded("versions", lambda: _versions(settings, *looked()))
        yield from _guarded("trigger topics", lambda: _trigger_topics(settings))
        yield from _guarded("partitions", lambda: engine_checks(looked()[0]))


def _guarded(name: str, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """What goes wrong while looking is a finding too."""
    try:
        yield from check()
    except (AdminError, LogUnavailable) as error:
        yield Check(name, "fail", str(error))


def _topics(admin: KafkaAdmin, queues: dict[str, list[str]]) -> Iterator[Check]:
    planned = admin.plan(queues)
    wrong = [plan for plan in planned if plan.action != "keep"]
    if not wrong:
        yield Check("topics", "ok", f"{len(planned)} as declared")
        return
    if missing := [plan.topic for plan in wrong if plan.action == "create"]:
        yield Check("topics", "fail", f"missing: {', '.join(missing)}", "flowpilot topic apply")
    for plan in wrong:
        if plan.action == "change":
            yield Check("topics", "warn", f"{plan.topic} has {plan.detail}", "flowpilot topic apply")
        elif plan.action == "refuse":
            remedy = "set FLOWPILOT_EVENT_PARTITIONS to what is there: the count is fixed for life"
            yield Check("topics", "fail", f"{plan.topic} has {plan.detail}", remedy)


def _database(settings: Settings) -> Iterator[Check]:
    try:
        schema = schema_state(settings)
    except (DatabaseUnreachable, DatabaseAddressError) as error:
        yield Check("postgresql", "fail", str(error), "flowpilot dev, or set FLOWPILOT_DATABASE_URL")
        return
    except DatabaseRefused as error:
        yield Check("postgresql", "fail", str(error))
        return
    yield Check("postgresql", "ok", address(settings))
    migrations = _migrations(schema)
    yield migrations
    if migrations.status == "ok":
        yield from _audit(settings)


def _migrations(schema: SchemaState) -> Check:
    if schema.current is None:
        return Check("migrations", "fail", "the database has no tables of FlowPilot's", "flowpilot db upgrade")
    if not schema.known:
        detail = f"the database is at {schema.current}, which this release does not know"
        return Check("migrations", "fail", detail, "install the release that upgraded it, or a later one")
    if schema.current != schema.newest:
        detail = f"the database is at {schema.current}, this release needs {schema.newest}"
        return Check("migrations", "fail", detail, "flowpilot db upgrade")
    return Check("migrations", "ok", schema.current)


def _audit(settings: Settings) -> Iterator[Check]:
    engine = connect(settings.database_url.get_secret_value(), application="flowpilot-doctor")
    try:
        with engine.connect() as connection:
            letters = connection.execute(
                text("SELECT count(*) FROM dead_letter WHERE reported_at > now() - interval '24 hours'")
            ).scalar_one()
            refused = connection.execute(
                text(
                    "SELECT count(*) FROM dead_letter WHERE reason = ANY(:reasons) "
                    "AND reported_at > now() - interval '24 hours'"
                ),
                {"reasons": [MISSING, INVALID]},
            ).scalar_one()
            diverged, known = connection.execute(
                text(
                    "SELECT count(*) FILTER (WHERE a.fingerprint IS NULL), count(a.fingerprint) "
                    "FROM audit_divergence d LEFT JOIN audit_acknowledgement a USING (fingerprint)"
                )
            ).one()
    except SQLAlchemyError as error:
        yield Check("audit", "fail", str(error).partition("\n")[0])
        return
    finally:
        engine.dispose()
    if letters:
        detail = f"{letters} within 24 hours"
        yield Check("dead letters", "warn", detail, "flowpilot dead-letter list")
    else:
        yield Check("dead letters", "ok", "none within 24 hours")
    if refused:
        were = "step message was" if refused == 1 else "step messages were"
        detail = f"{refused} {were} not run within 24 hours: not signed, or signed with another secret"
        remedy = "give engines and workers the same FLOWPILOT_STEP_SECRET; flowpilot dead-letter list --letters"
        yield Check("step secret", "warn", detail, remedy)
    if diverged:
        detail = f"{diverged} records contradict the audit"
        yield Check("audit record", "fail", detail, "flowpilot divergence list")
    else:
        yield Check("audit record", "ok", f"no divergence but {known} acknowledged" if known else "no divergence")


def _roles(settings: Settings, queues: dict[str, list[str]]) -> Iterator[Check]:
    groups, topics = KafkaGroups(settings, timeout=_PATIENCE), settings.topics
    roles = {"engine": topics.app_id, "router": topics.router_group, "audit": topics.audit_group}
    members = groups.members([*roles.values(), *map(topics.worker_group, queues)])
    for role, group in roles.items():
        positions = groups.committed(group)
        # What it has read so far, and what it must read in any case.
        read = {topic for topic, _ in positions}
        read |= {"engine": {topics.events}, "router": {topics.triggers}, "audit": {topics.history}}[role]
        yield _reader(role, len(members[group]), groups.lag(read, positions), f"flowpilot {role}")
    for queue, workflows in queues.items():
        group = topics.worker_group(queue)
        lag = groups.lag([topics.steps(queue)], groups.committed(group))
        remedy = f"flowpilot worker MODULE:{workflows[0]}"
        yield _reader(f"queue {queue}", len(members[group]), lag, remedy, "step")
    if not queues:
        yield Check("workflows", "warn", "none is registered", "flowpilot worker MODULE:WORKFLOW")


def _versions(settings: Settings, live: LiveMembers, definitions: Definitions) -> Iterator[Check]:
    """Whether every version that is current, or that executions run on, has a worker."""
    try:
        with querying(settings, AuditQueries) as queries:
            running = queries.running_definitions()
    except (DatabaseUnreachable, DatabaseRefused, DatabaseAddressError):
        running = {}  # the check of PostgreSQL says so
    if not live.is_complete:
        detail = f"{settings.topics.members} has more records than are read: not every live worker is known"
        yield Check("members", "warn", detail, f"see who writes to {settings.topics.members}")
    wanted = {hash: found for hash in running if (found := definitions.get(hash)) is not None}
    for name in definitions.workflows():
        if (current := definitions.current(name)) is not None:
            wanted.setdefault(current.hash, current)
    queues = list(dict.fromkeys(queue for definition in wanted.values() for queue in definition.queues))
    members = KafkaGroups(settings, timeout=_PATIENCE).members(map(settings.topics.worker_group, queues))
    missing = unserved(wanted.values(), Seen(live, unannounced(queues, members, settings, live), definitions))
    for definition, wait, steps in missing:
        waits = running.get(definition.hash, 0)
        if not waits and wait.reason == "no_worker":
            continue  # the check of the queue says so
        what = f"{definition.name} {definition.version}"
        lives = f"{waits:,} execution{'' if waits == 1 else 's'} running" if waits else "none running"
        detail = f"{steps} of {len(definition.steps)} steps need {wait.detail}; {lives}"
        yield Check(f"version {what}", "fail" if waits else "warn", detail, wait.remedy)
    if wanted and not missing:
        yield Check("versions", "ok", f"{len(wanted)} in use, each with a worker")


def _trigger_topics(settings: Settings) -> Iterator[Check]:
    """Whether each partition that starts executions is read."""
    seen = trigger_topics.look(settings, _PATIENCE)
    found = list(troubles(seen))
    if seen.assigned is not None and (lags(seen) or any(trouble.is_passing for trouble in found)):
        time.sleep(BETWEEN)
        before, seen = seen, trigger_topics.look(settings, _PATIENCE)
        found = list(troubles(seen, before))
    for trouble in found[:_NAMED]:
        detail = f"{trouble.place}: {trouble.detail}"
        yield Check("trigger topics", "fail" if trouble.is_grave else "warn", detail, trouble.remedy)
    if len(found) > _NAMED:
        yield Check("trigger topics", "fail", f"and {len(found) - _NAMED} more partitions or topics like these")
    if found:
        return
    detail = f"{len(seen.bounds)} partitions of {len(seen.ids)} topics"
    if seen.others:
        detail += f"; {seen.others} positions of topics, partitions and workflows that are no more are ignored"
    yield Check("trigger topics", "ok", detail)


def engine_checks(live: LiveMembers) -> Iterator[Check]:
    """What live engines announce: partitions that they stopped, and rule sets that not all of them have."""
    stopped = {stop.partition: stop.reason for engine in live.engines for stop in engine.stopped}
    for partition, reason in sorted(stopped.items()):
        remedy = "flowpilot engine, of a later release" if "upgrade the engine" in reason else None
        yield Check(f"partition {partition}", "fail", reason, remedy)
    rules = sorted({engine.rules for engine in live.engines})
    if len(rules) > 1:
        detail = f"engines of different releases: some have rule sets up to {rules[0]}, others up to {rules[-1]}"
        yield Check("rule sets", "warn", detail, "upgrade all engines, then flowpilot setup")


def _reader(name: str, members: int, lag: int, remedy: str, what: str = "record") -> Check:
    what += "" if lag == 1 else "s"
    if not members:
        if lag:
            return Check(name, "fail", f"nobody serves it, waiting: {lag:,} {what}", remedy)
        return Check(name, "warn", "nobody serves it", remedy)
    processes = f"{members} process{'' if members == 1 else 'es'}"
    if lag >= MANY:
        return Check(name, "warn", f"{processes}, {lag:,} {what} behind", f"one more: {remedy}")
    return Check(name, "ok", f"{processes}, {lag:,} {what} behind")
