"""What the binding works around in Faust, shown against the pinned version.

A canary that goes red after an upgrade is good news or a warning: the hazard is gone and its work-around may
go, or a part that is replaced has changed and has to be read again. None needs a broker.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import aiokafka
import faust
import pytest
from aiokafka.consumer.group_coordinator import GroupCoordinator
from faust.assignor.partition_assignor import PartitionAssignor
from faust.events import Event
from faust.stores.memory import Store as MemoryStore
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport import conductor, consumer, producer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from intervaltree import IntervalTree  # type: ignore[import-untyped]

from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.settings import Settings
from flowpilot_agents import namesake, table, transport
from flowpilot_agents.contract import Engine
from flowpilot_agents.topology import bind, new_pulse

TP0 = TP("events", 0)
CHANGELOG = TP("app-executions-changelog", 0)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def stock_app(**options: Any) -> faust.App:
    return faust.App("app", broker="kafka://127.0.0.1:1", store="memory://", autodiscover=False, **options)


def bare(cls: type, **attributes: Any) -> Any:
    """An instance without its __init__, which would want a whole worker around it."""
    made: Any = object.__new__(cls)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def message(offset: int, tp: TP = TP0) -> ConsumerMessage:
    return ConsumerMessage(tp.topic, tp.partition, offset, 0.0, 0, {}, b"k", b"1", None, tp=tp, generation_id=0)


# -- what is replaced is what we know -------------------------------------------------------------------------

REPLACED: dict[Callable[..., Any], str] = {
    consumer.Consumer._drain_messages: "44a2500309e8",
    consumer.Consumer._wait_next_records: "6218e1969a63",
    consumer.Consumer.getmany: "4b168d84882a",
    consumer.Consumer.on_partitions_revoked: "d04b7ae72c6f",
    consumer.Consumer.wait_empty: "e4662fe24f09",
    consumer.Consumer.force_commit: "cc094614d22c",
    consumer.Consumer.pause_partitions: "27a1c94bdacd",
    consumer.Consumer.resume_partitions: "afe6b7c02a41",
    driver.AIOKafkaConsumerThread._commit: "932852ce7a23",
    driver.AIOKafkaConsumerThread._create_worker_consumer: "c2701bfc3e6f",
    Recovery.on_recovery_completed: "6ef567acf072",
    Recovery._seek_offsets: "19598ca63d94",
    Recovery._restart_recovery.fun: "6bd8a8558a2d",
    Recovery._slurp_changelogs.fun: "7825c7e50f76",
    Recovery.on_rebalance: "aa4d997a1795",
    TableManager.on_start: "365dd25fbc0e",
    faust.App._on_partitions_revoked: "d5c895bbe57d",
    faust.App._on_partitions_assigned: "de932b7927db",
    faust.App._stop_consumer: "55854a5de12c",
}


@pytest.mark.parametrize("function", REPLACED, ids=lambda function: function.__qualname__)
def test_what_the_binding_replaces_or_leans_on_is_unchanged(function: Callable[..., Any]) -> None:
    source = hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]
    assert source == REPLACED[function], f"{function.__qualname__} has changed: read it beside its replacement"


def test_aiokafka_has_these_words_for_a_member_that_was_replaced() -> None:
    assert GroupCoordinator.__module__ == namesake.COORDINATOR
    assert namesake.FORGOTTEN in inspect.getsource(GroupCoordinator._do_heartbeat)


def test_the_pinned_versions() -> None:
    assert faust.__version__.startswith("0.15.3")
    assert aiokafka.__version__ == "0.14.0"


def test_faust_derives_the_changelogs_name_that_the_schemas_declare() -> None:
    settings = Settings(_env_file=None)

    async def bound() -> str:
        engine = cast(Engine, SimpleNamespace(stopped={}))
        app = bind(settings, engine, MemoryLog().producer(), new_pulse())
        return cast(table.ExecutionTable, app.tables["executions"]).changelog_topic_name

    assert run(bound()) == settings.topics.changelog == "flowpilot-engine-executions-changelog"


# -- acknowledgement and commit: why they are ours ------------------------------------------------------------


def test_an_event_whose_agent_raised_is_acknowledged() -> None:
    async def scene() -> Any:
        app = stock_app()
        app.consumer = bare(
            driver.Consumer,
            app=app,
            _unacked_messages=set(),
            _acked=defaultdict(list),
            _acked_index=defaultdict(set),
            _committed_offset=defaultdict(lambda: None),
            _n_acked=0,
            _waiting_for_ack=None,
        )
        app.topics._acking_topics.add(TP0.topic)  # type: ignore[attr-defined]
        app.flow_control.resume()
        stream = app.stream(app.channel())
        record = message(3)
        record.incref()
        await stream.channel.queue.put(Event(app, b"k", 1, {}, record))  # type: ignore[attr-defined]

        async def agent() -> None:
            async for _ in stream:
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await agent()
        await asyncio.sleep(0)  # the generator's end
        return app.consumer._acked[TP0]  # type: ignore[attr-defined]

    assert run(scene()) == [3]


def acked(offsets: list[int], committed: int | None) -> Any:
    return bare(
        driver.Consumer,
        _acked={TP0: list(offsets)},
        _acked_index={TP0: set(offsets)},
        _gap=defaultdict(IntervalTree),
        _committed_offset={TP0: committed},
    )


def test_the_offset_to_commit_passes_over_an_unacknowledged_record() -> None:
    assert acked([11, 12], committed=10)._new_offset(TP0) == 13, "10 is not acknowledged"
    assert acked([5, 6], committed=None)._new_offset(TP0) == 7, "0 to 4 are not acknowledged"


def test_a_failed_commit_is_taken_for_done() -> None:
    async def scene() -> int:
        async def fails(offsets: object) -> bool:
            return False

        async def flush() -> None:
            return None

        stock = bare(
            driver.Consumer,
            log=SimpleNamespace(dev=lambda *a: None, info=lambda *a: None),
            app=SimpleNamespace(
                producer=SimpleNamespace(flush=flush),
                monitor=SimpleNamespace(on_tp_commit=lambda offsets: None),
                tables=SimpleNamespace(on_commit=lambda offsets: None),
            ),
            in_transaction=False,
            _committed_offset={TP0: 5},
            assignment=lambda: {TP0},
            _commit=fails,
        )
        assert await stock._commit_offsets({TP0: 9}) is False
        return int(stock._committed_offset[TP0])

    assert run(scene()) == 9


def test_flush_gives_up_after_a_tenth_of_a_second() -> None:
    async def scene() -> int:
        buffer = producer.ProducerBuffer()
        buffer.app = stock_app()

        async def never(_: object) -> None:
            await asyncio.Event().wait()

        buffer._send_pending = never  # type: ignore[method-assign, assignment]
        await buffer.start()
        for _ in range(3):
            buffer.put(SimpleNamespace())  # type: ignore[arg-type]
        await asyncio.wait_for(buffer.flush(), 5)
        left = buffer.size
        buffer.pending._queue.clear()  # type: ignore[attr-defined]
        await buffer.stop()
        return left

    assert run(scene()) > 0, "flush returned, and nothing was sent"


def test_acknowledgements_are_dropped_before_the_commit_in_a_rebalance() -> None:
    source = inspect.getsource(consumer.Consumer.on_partitions_revoked)
    assert source.index("self._acked.pop") < source.index("self._on_partitions_revoked")


def test_exactly_once_sends_to_foreign_topics_outside_any_transaction() -> None:
    async def scene() -> object:
        sent: list[object] = []

        async def send(*_: object, transactional_id: str | None) -> None:
            sent.append(transactional_id)

        manager = bare(
            consumer.TransactionManager,
            consumer=SimpleNamespace(key_partition=lambda *a: None),  # the app does not consume the topic
            producer=SimpleNamespace(send=send),
            app=stock_app(),
        )
        await manager.send("flowpilot.steps.q", b"k", b"v", None, None, None, transactional_id="mine")
        return sent

    assert run(scene()) == [None]


# -- delivery: why it is ours ---------------------------------------------------------------------------------


def test_each_record_costs_several_tasks() -> None:
    source = inspect.getsource(consumer.Consumer._drain_messages)
    assert "self.wait_first(" in source

    async def scene() -> int:
        made = 0
        loop = asyncio.get_running_loop()

        def factory(loop: Any, coro: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            return asyncio.Task(coro, loop=loop, **options)

        service = consumer.Fetcher(stock_app())
        loop.set_task_factory(factory)

        async def callback() -> None:
            return None

        await service.wait_first(callback(), asyncio.Event().wait())
        loop.set_task_factory(None)
        return made

    assert run(scene()) >= 2


def test_an_idle_fetch_loop_sleeps_a_second() -> None:
    async def scene() -> list[float]:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        stock = bare(
            driver.Consumer,
            flow_active=True,
            not_waiting_next_records=asyncio.Event(),
            app=SimpleNamespace(client_only=False),
            _active_partitions=set(),
            sleep=sleep,
        )
        await stock._wait_next_records(1.0)
        return slept

    assert run(scene()) == [1]


def test_a_pause_does_not_reach_aiokafka() -> None:
    stock = bare(driver.Consumer, _active_partitions={TP0}, _paused_partitions=set(), _thread=None)
    stock.pause_partitions({TP0})  # with a call into the thread, this would have failed
    assert stock._paused_partitions == {TP0}


def test_the_long_poll_is_a_second_and_a_half() -> None:
    async def scene(cls: type[driver.AIOKafkaConsumerThread]) -> Any:
        app = stock_app()
        thread = bare(cls, app=app, consumer=SimpleNamespace(in_transaction=False))
        return thread._create_worker_consumer(app.transport)._fetch_max_wait_ms

    assert run(scene(driver.AIOKafkaConsumerThread)) == 1500
    assert run(scene(transport.ConsumerThread)) == transport.FETCH_MAX_WAIT_MS


def test_a_fetcher_that_is_stopped_in_a_rebalance_crashes() -> None:
    async def scene() -> None:
        app = stock_app()
        app.rebalancing = True

        async def drain(_: object) -> None:
            await asyncio.Event().wait()

        app.consumer = SimpleNamespace(_drain_messages=drain)  # type: ignore[assignment]
        fetcher = consumer.Fetcher(app)
        fetching = asyncio.ensure_future(consumer.Fetcher._fetcher.fun(fetcher))
        await asyncio.sleep(0)
        fetching.cancel()
        with pytest.raises(AttributeError, match="wakeup"):
            await fetching

    run(scene())


def test_a_new_topic_waits_for_forty_five_seconds() -> None:
    """Why the router is no part of the app."""
    assert conductor.Conductor._resubscribe_sleep_lock_seconds == 45.0


# -- table and recovery: why they are ours --------------------------------------------------------------------


def test_a_table_takes_the_partition_from_the_current_event() -> None:
    async def scene() -> None:
        with pytest.raises(TypeError, match="outside of stream"):
            stock_app().Table("executions").partition_for_key(b"k")

    run(scene())


def memory_store() -> Any:
    return bare(MemoryStore, data={}, _key_partition={})


def test_the_memory_store_forgets_how_far_it_has_read() -> None:
    assert memory_store().persisted_offset(CHANGELOG) is None


def test_the_memory_store_keeps_the_last_record_not_the_right_one() -> None:
    store = memory_store()
    versions = [{"src": 9, "epoch": 2}, {"src": 7, "epoch": 1}]
    events = [SimpleNamespace(key="k", value=value, message=message(n)) for n, value in enumerate(versions)]
    store.apply_changelog_batch(events, lambda key: key, lambda value: value)
    assert store.data["k"] == {"src": 7, "epoch": 1}


def test_the_memory_store_keeps_its_own_keys_of_partitions_that_went_away() -> None:
    store = memory_store()
    store.data["written while owner of partition 1"] = 1
    run(store.on_recovery_completed({CHANGELOG}, set()))
    assert store.data


def test_recovery_swallows_an_error_and_counts_the_record_as_read() -> None:
    async def scene() -> Any:
        app = stock_app()

        async def fails(event: object) -> None:
            raise ValueError("broken record")

        recovery = Recovery(app, app.tables)
        recovery.active_tps.add(CHANGELOG)
        recovery.active_offsets[CHANGELOG] = 4
        recovery.tp_to_table[CHANGELOG] = SimpleNamespace(  # type: ignore[assignment]
            recovery_buffer_size=1, on_changelog_event=fails, apply_changelog_batch=lambda batch: None
        )
        app.flow_control.resume()
        slurp = asyncio.ensure_future(Recovery._slurp_changelogs.fun(recovery))
        await cast(TableManager, app.tables).changelog_queue.put(SimpleNamespace(message=message(5, CHANGELOG)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not slurp.done()
        slurp.cancel()
        return recovery.active_offsets[CHANGELOG]

    assert run(scene()) == 5


def test_recovery_seeks_below_the_log_s_start() -> None:
    async def scene(cls: type[Recovery]) -> Any:
        asked: list[Any] = []

        async def seek_wait(offsets: Any) -> None:
            asked.append(offsets)

        stock = bare(cls)
        # The log begins at 100, so Faust takes 99 as the last known offset.
        await stock._seek_offsets(SimpleNamespace(seek_wait=seek_wait), {CHANGELOG}, Counter({CHANGELOG: 99}), "")
        return asked[0][CHANGELOG]

    assert run(scene(Recovery)) == 99
    assert run(scene(table.BulkRecovery)) == 100


def test_events_are_read_before_the_seek_to_where_they_begin() -> None:
    source = inspect.getsource(Recovery.on_recovery_completed)
    assert source.index("consumer.resume_partitions") < source.index("consumer.perform_seek")


def test_the_table_manager_sleeps_a_second_at_the_start() -> None:
    assert "await self.sleep(1.0)" in inspect.getsource(TableManager.on_start)


def test_an_error_of_a_table_s_completion_is_swallowed() -> None:
    """Why the claim is not made in `Table.on_recovery_completed`."""
    assert "await asyncio.wait(callback_coros)" in inspect.getsource(Recovery.on_recovery_completed)


def test_a_static_member_must_keep_its_url() -> None:
    source = inspect.getsource(PartitionAssignor.on_assignment)
    assert "assert metadata.url == str(self._url)" in source
