"""Whether the settings' replication fits the cluster and its topics. Pure: sentences from numbers."""

from __future__ import annotations

from collections.abc import Mapping

from flowpilot.settings import Settings


def refusal(settings: Settings, replicas: Mapping[str, int]) -> str | None:
    """Why no record could be acknowledged, if so. `replicas`: of each existing topic, by its name."""
    factor, in_sync = settings.replication_factor, settings.in_sync(settings.replication_factor)
    if in_sync > factor:
        return (
            f"FLOWPILOT_MIN_INSYNC_REPLICAS={in_sync} is more than FLOWPILOT_REPLICATION_FACTOR={factor}: no "
            f"record could be acknowledged; set it to at most {factor}, or leave it unset"
        )
    if few := [name for name, count in replicas.items() if settings.in_sync(count) > count]:
        return (
            f"{_topics(few)} fewer replicas than FLOWPILOT_MIN_INSYNC_REPLICAS={in_sync}: no record could be "
            "acknowledged; give them more (kafka-reassign-partitions.sh), or leave it unset"
        )
    return None


def advice(settings: Settings, brokers: int, replicas: Mapping[str, int]) -> list[str]:
    """What works and is still not meant: a sentence each."""
    factor, in_sync = settings.replication_factor, settings.in_sync(settings.replication_factor)
    found = []
    if brokers > 1 and factor == 1:
        found.append(
            f"Kafka has {brokers} brokers and FLOWPILOT_REPLICATION_FACTOR is 1: a topic that is made so lies on "
            "one of them and is lost with it"
        )
    if factor > 1 and in_sync == 1:
        found.append("a record is acknowledged when one broker has it, and is lost with that one")
    if factor > 1 and in_sync == factor:
        found.append(
            f"FLOWPILOT_MIN_INSYNC_REPLICAS is the replication factor, {factor}: one broker that is down stops "
            "every write"
        )
    if few := [name for name, count in replicas.items() if count < factor]:
        found.append(
            f"{_topics(few)} fewer replicas than FLOWPILOT_REPLICATION_FACTOR={factor}: `flowpilot setup` does not "
            "move partitions, kafka-reassign-partitions.sh does"
        )
    return found


def _topics(names: list[str]) -> str:
    some = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"topic {some} has" if len(names) == 1 else f"topics {some} have"
