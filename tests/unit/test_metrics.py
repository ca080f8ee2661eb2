"""What the rooms tell a meter, read as Prometheus would; and the port that it is served on."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowpilot import NonRetryable, Workflow
from flowpilot.adapters.prometheus import PrometheusMeter
from flowpilot.app import metrics as served
from flowpilot.app.metrics import MetricsUnavailable, serving_metrics
from flowpilot.audit.observed import Observed as AuditObserved
from flowpilot.local.ports import free_ports
from flowpilot.ports import metrics
from flowpilot.ports.audit import Divergence
from flowpilot.ports.log import Fetched
from flowpilot.ports.meter import OFF, Metric
from flowpilot.ports.metrics import METRICS
from flowpilot.settings import Settings
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import RetryPolicy, StepDefinition, WorkflowDefinition
from tests.unit.engine_world import BEGIN, CHAIN, Owner, World, completed, starting
from tests.unit.test_router_loop import World as RouterWorld
from tests.unit.test_router_loop import workflow
from tests.unit.worker_rig import Rig
from tests.waiting import eventually_async

TWICE = WorkflowDefinition(
    name="twice",
    version="1",
    steps=(StepDefinition(name="s", queue="q", retry=RetryPolicy(max_attempts=2, initial_ms=500)),),
)


class Seen:
    """A meter of all metrics, and what a scrape of it shows."""

    def __init__(self) -> None:
        self.meter = PrometheusMeter(METRICS)

    def value(self, metric: Metric, *labels: str, part: str = "") -> float | None:
        """A sample; `part` is `_count` or `_sum` of a histogram's."""
        named = dict(zip(metric.labels, labels, strict=True))
        return self.meter.registry.get_sample_value(metric.name + part, named)

    def count(self, metric: Metric, *labels: str) -> float | None:
        return self.value(metric, *labels, part="_count")


@pytest.fixture
def seen() -> Seen:
    return Seen()


# -- the declarations


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_declaration_keeps_the_rules(metric: Metric) -> None:
    assert re.fullmatch(r"flowpilot_(engine|worker|router|audit|api)_[a-z_]+", metric.name)
    assert metric.meaning.endswith(".")
    assert metric.name.endswith("_total") is (metric.kind == "counter")
    assert set(metric.labels) <= {
        "workflow",
        "step",
        "outcome",
        "status",
        "reason",
        "timeout",
        "topic",
        "partition",
        "method",
        "route",
    }
    assert bool(metric.buckets) is (metric.kind == "histogram")
    if metric.kind == "histogram":
        assert metric.name.endswith(("_seconds", "_records"))


def test_no_name_is_taken_twice() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS) > 20


# -- engine


def observed_engine(world: World, seen: Seen) -> Owner:
    owner = Owner(world, meter=seen.meter)
    owner.take(0).to_end()
    return owner


def turn(owner: Owner) -> None:
    owner.process(owner.fetch(100)).to_end()


def test_the_engine_tells_of_batches_tables_and_outcomes(seen: Seen) -> None:
    world = World()
    owner = observed_engine(world, seen)
    first, second = world.start(CHAIN, "1"), world.start(CHAIN, "2")
    world.now += 2_500
    turn(owner)
    assert seen.value(metrics.ENGINE_LAG, "0") == 2.5
    assert seen.value(metrics.ENGINE_FOLDED, "0") == BEGIN / 1_000
    assert (seen.count(metrics.ENGINE_BATCH), seen.value(metrics.ENGINE_BATCH, part="_sum")) == (1, 2)
    assert seen.value(metrics.ENGINE_STARTED, "chain") == 2
    assert seen.value(metrics.ENGINE_RUNNING, "0") == 2
    for step in "abc":
        world.event(completed(f"{first}/0/{step}/1"), first)
        turn(owner)
    world.event(m.CancelExecution(execution=second, actor="me", reason="enough"), second)
    turn(owner)
    assert [seen.value(metrics.ENGINE_ATTEMPTS, "chain", step, "completed") for step in "abc"] == [1, 1, 1]
    assert seen.value(metrics.ENGINE_ENDED, "chain", "completed") == 1
    assert seen.value(metrics.ENGINE_ENDED, "chain", "cancelled") == 1
    assert (seen.value(metrics.ENGINE_RUNNING, "0"), seen.value(metrics.ENGINE_KEPT, "0")) == (0, 2)
    assert seen.value(metrics.ENGINE_ENTRIES, "0") == len(owner.engine.table(0))


def test_attempts_are_counted_once_each(seen: Seen) -> None:
    world = World(definitions=[TWICE])
    owner = observed_engine(world, seen)
    execution = world.start(TWICE, "1")
    turn(owner)
    for attempt in (1, 2):
        error = m.StepError(kind="Boom", message="no")
        world.event(m.StepFailed(task_id=f"{execution}/0/s/{attempt}", error=error), execution)
        turn(owner)
        world.now += 1_000
        owner.tick().to_end()
        turn(owner)
    assert seen.value(metrics.ENGINE_ATTEMPTS, "twice", "s", "retried") == 1
    assert seen.value(metrics.ENGINE_ATTEMPTS, "twice", "s", "failed") == 1
    assert seen.value(metrics.ENGINE_ENDED, "twice", "failed") == 1


def test_a_refused_start_tells_its_reason_and_no_name(seen: Seen) -> None:
    world = World()
    owner = observed_engine(world, seen)
    message = starting(CHAIN, "1").model_copy(update={"workflow": "whatever"})
    world.event(message, message.execution)
    turn(owner)
    assert seen.value(metrics.ENGINE_REFUSED, "other_definition") == 1
    assert seen.value(metrics.ENGINE_STARTED, "whatever") is None


def test_a_partition_that_goes_away_leaves_no_values(seen: Seen) -> None:
    world = World()
    owner = observed_engine(world, seen)
    assert seen.value(metrics.ENGINE_STOPPED, "0") == 0
    world.raise_to(m.RULES + 1)
    turn(owner)
    assert seen.value(metrics.ENGINE_STOPPED, "0") == 1
    owner.give_back(0)
    left = [
        sample
        for family in seen.meter.registry.collect()
        for sample in family.samples
        if sample.labels.get("partition") == "0"
    ]
    assert left == []


# -- worker


flow = Workflow("flow", version="1")


@flow.step
def good() -> int:
    time.sleep(0.05)
    return 1


@flow.step
def bad() -> None:
    raise NonRetryable("no")


@flow.step
async def slow() -> None:
    await asyncio.sleep(60)


def test_the_worker_tells_how_steps_wait_and_run(seen: Seen) -> None:
    rig = Rig(flow)

    async def go() -> None:
        async with rig.serving(meter=seen.meter, concurrency=3):
            assert seen.value(metrics.WORKER_SLOTS) == 3
            rig.ready("slow", start_to_close_ms=600)
            await eventually_async(lambda: seen.value(metrics.WORKER_RUNNING) == 1)
            rig.ready("good")
            rig.ready("bad")
            for step, outcome in (("good", "completed"), ("bad", "failed"), ("slow", "timed_out")):
                await eventually_async(lambda s=step, o=outcome: seen.count(metrics.WORKER_RAN, "flow", s, o) == 1)
            await eventually_async(lambda: seen.value(metrics.WORKER_RUNNING) == 0)

    asyncio.run(go())
    assert 0.05 <= (seen.value(metrics.WORKER_RAN, "flow", "good", "completed", part="_sum") or 0) < 30
    assert 0.6 <= (seen.value(metrics.WORKER_RAN, "flow", "slow", "timed_out", part="_sum") or 0) < 30
    assert [seen.count(metrics.WORKER_WAITED, "flow", step) for step in ("good", "bad", "slow")] == [1, 1, 1]
    assert 0 <= (seen.value(metrics.WORKER_WAITED, "flow", "good", part="_sum") or 0) < 30


# -- router


def test_the_router_tells_each_records_fate(seen: Seen) -> None:
    world = RouterWorld()

    async def go() -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("shop", "orders", where="data.n > 1"))
        async with world.running(meter=seen.meter):
            await world.publish("orders", {"n": 1}, {"n": 2}, {"n": 3}, None, b"{")
            await eventually_async(lambda: seen.value(metrics.ROUTER_DEAD_LETTERS, "not_json") == 1)

    asyncio.run(go())
    assert seen.value(metrics.ROUTER_STARTED, "shop") == 2
    assert seen.value(metrics.ROUTER_FILTERED, "where") == 1
    assert seen.value(metrics.ROUTER_FILTERED, "tombstone") == 1


# -- audit


def test_the_audit_tells_of_transactions_and_divergences(seen: Seen) -> None:
    now = int(time.time() * 1_000)
    records = [
        Fetched("history", 0, 1, now - 9_000, b"k", b"v"),
        Fetched("history", 0, 2, now - 1_000, b"k", b"v"),
        Fetched("history", 1, 7, now - 3_000, b"k", b"v"),
        Fetched("letters", 0, 1, now + 60_000, b"k", b"v"),
    ]
    gap = Divergence("gap", "there is a gap", "history", 0, 1)
    AuditObserved(seen.meter).batch(records, [gap, gap], 0.2)
    assert (seen.count(metrics.AUDIT_BATCH), seen.value(metrics.AUDIT_BATCH, part="_sum")) == (1, 4)
    assert seen.value(metrics.AUDIT_TRANSACTION, part="_sum") == 0.2
    assert seen.value(metrics.AUDIT_RECORDS, "history") == 3
    assert seen.value(metrics.AUDIT_DIVERGENCES, "gap") == 2
    assert seen.value(metrics.AUDIT_WRITTEN, "history") == (now - 1_000) / 1_000
    assert 3 <= (seen.value(metrics.AUDIT_LAG, "history") or 0) < 60  # the partition that is furthest behind
    assert seen.value(metrics.AUDIT_LAG, "letters") == 0  # the broker's clock goes before ours


# -- the port


def at(port: int | None) -> Settings:
    return Settings(_env_file=None, metrics_port=port)


def test_what_is_served_is_of_the_role_alone() -> None:
    [port] = free_ports(1)
    for _ in range(2):  # a worker that somebody embeds may be started again
        with serving_metrics(at(port), "router") as meter:
            assert meter.is_on
            meter.add(metrics.ROUTER_STARTED, 3, 'a "name"\n')
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                families = {
                    family.name: family for family in text_string_to_metric_families(answer.read().decode())
                }
    ours = {name for name in families if name.startswith("flowpilot_") and not name.endswith("_created")}
    assert ours == {metric.name.removesuffix("_total") for metric in METRICS if metric.role == "router"}
    [sample] = [each for each in families["flowpilot_router_starts"].samples if each.name.endswith("_total")]
    assert (sample.labels, sample.value) == ({"workflow": 'a "name"\n'}, 3)


def test_a_taken_port_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MetricsUnavailable) as told, serving_metrics(at(port), "audit"):
            raise AssertionError("it cannot be served")
    assert str(told.value) == (
        f"the audit's metrics cannot be served on 127.0.0.1:{port} (Address already in use): give every process a "
        "FLOWPILOT_METRICS_PORT of its own"
    )


def test_an_address_that_is_not_here_is_one_sentence() -> None:
    settings = at(free_ports(1)[0]).model_copy(update={"metrics_host": "no-such-host.invalid"})
    with pytest.raises(MetricsUnavailable, match=r"on no-such-host\.invalid:"), serving_metrics(settings, "audit"):
        raise AssertionError("it cannot be served")


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "find_spec", lambda name: None)
    with pytest.raises(MetricsUnavailable, match=r"install flowpilot\[metrics\]"), serving_metrics(at(1), "worker"):
        raise AssertionError("it cannot be served")


def test_off_loads_nothing_and_counts_nothing() -> None:
    with serving_metrics(at(None), "engine") as meter:
        assert meter is OFF
    rooms = "app.router, flowpilot.app.audit, flowpilot.app.worker, flowpilot.engine.engine"
    script = (
        f"import sys, flowpilot.{rooms}, flowpilot_agents.start\n"
        "from flowpilot.app.metrics import serving_metrics\nfrom flowpilot.settings import Settings\n"
        "with serving_metrics(Settings(_env_file=None), 'engine'):\n"
        "    sys.exit('prometheus_client' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
