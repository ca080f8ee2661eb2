"""Announcements: what fits into a record, and what is asked of those who are live."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flowpilot.ports.members import LiveMembers
from flowpilot_schemas.codec import decode_object, encode_message, parse
from flowpilot_schemas.members import EngineAnnounced, ServedDefinition, WorkerAnnounced, worker_announced
from flowpilot_schemas.topics import MEMBER_MESSAGE

NAME = "n" * 100


def announced(
    queues: dict[str, list[int]], definitions: list[ServedDefinition], worker: str = "w1"
) -> WorkerAnnounced:
    return worker_announced(
        worker, started_at="", release="", queues=queues, definitions=definitions, session_ms=30_000
    )


def engine(name: str, rules: int) -> EngineAnnounced:
    return EngineAnnounced(engine=name, started_at="", release="", rules=rules, session_ms=30_000)


def served(number: int, version: str = "1") -> ServedDefinition:
    return ServedDefinition(workflow=f"w{number}", version=version, definition=f"sha256:{number:064x}")


def test_two_thousand_definitions_fit_as_far_as_they_are_told() -> None:
    definitions = [served(number, NAME) for number in range(2_000)]
    found = announced({"default": [0]}, definitions)
    assert found.definitions == definitions[: len(found.definitions)]
    assert found.definitions_left_out == 2_000 - len(found.definitions) > 0
    assert len(found.definitions) > 400
    assert len(encode_message(found)) < MEMBER_MESSAGE


def test_partitions_that_do_not_fit_are_left_out_and_counted() -> None:
    queues = {f"q{number}": list(range(1_024)) for number in range(100)}
    found = announced(queues, [])
    assert list(found.queues) == list(queues)
    assert found.queues["q0"] == list(range(1_024))
    assert found.queues["q99"] == []
    assert found.partitions_left_out == 1_024 * sum(not partitions for partitions in found.queues.values())


def test_queues_that_do_not_fit_are_left_out_and_counted() -> None:
    found = announced({f"{number:0100}": [0] for number in range(2_000)}, [])
    assert found.queues_left_out == 2_000 - len(found.queues) > 0


names = st.text("abc.-_Z9", min_size=1, max_size=100)


@given(
    st.dictionaries(names, st.lists(st.integers(0, 2**31 - 1), max_size=50), max_size=50),
    st.lists(st.tuples(names, st.text(st.characters(codec="utf-8"), max_size=200)), max_size=50),
    st.sampled_from([1, 60]),
)
def test_every_announcement_fits_a_record_and_reads_back(
    queues: dict[str, list[int]], versions: list[tuple[str, str]], times: int
) -> None:
    definitions = [
        ServedDefinition(workflow=name, version=version, definition="sha256:" + "f" * 64)
        for name, version in versions
    ] * times
    found = announced(queues, definitions, worker="\u0000" * 1_000)
    value = encode_message(found)
    assert len(value) + len(found.key) < MEMBER_MESSAGE - 1_024
    assert parse(WorkerAnnounced, decode_object(value)) == found
    assert len(found.definitions) + found.definitions_left_out == len(definitions)


def test_engines_know_rules_only_if_all_live_ones_do() -> None:
    def known(*rules: int, is_complete: bool = True) -> bool:
        engines = [engine(f"e{number}", known) for number, known in enumerate(rules)]
        return LiveMembers([], engines, 0, is_complete).engines_know(2)

    assert known(2)
    assert known(3, 2)
    assert not known(2, 1)
    assert not known()
    assert not known(2, is_complete=False)


def test_queue_that_may_be_among_those_left_out_is_served() -> None:
    one = announced({"default": []}, [])
    other = one.model_copy(update={"worker": "w2", "queues": {}, "queues_left_out": 1})
    live = LiveMembers([one, other], [], 0)
    assert live.of_queue("default") == [one, other]
    assert live.of_queue("mail") == [other]
