"""What the fold has to say, as records: of decisions, and of what depends on a record alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flowpilot.core.dead_letters import dead_letter, dead_letter_key
from flowpilot.core.notices import Outgoing
from flowpilot.ports.log import Fetched, Record
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.history import HEADER_HOPS
from flowpilot_schemas.ids import root_id
from flowpilot_schemas.topics import Topics


class Output(NamedTuple):
    """A record to be sent once the state is durable. `task_id` is set for a step message."""

    record: Record
    task_id: str | None = None


class Outputs:
    """The outputs of a batch, in order."""

    def __init__(self, topics: Topics) -> None:
        self.records: list[Output] = []
        self._names = topics
        self._topics = {
            "history": topics.history,
            "control": topics.control,
            "reply": topics.replies,
            "event": topics.events,
            "dead_letter": topics.dead_letters,
        }

    def send(self, messages: Sequence[Outgoing]) -> None:
        """To the outputs; but nobody who starts an execution makes the engine write to a topic of his choice."""
        topics = self._topics
        for kind, key, value, headers, queue, topic, partition in messages:
            if kind == "step":
                step = Record(self._step_topic(queue), key.encode(), value, partition, headers)
                self.records.append(Output(step, key))
            elif kind != "reply" or topic == topics["reply"]:
                self.records.append(Output(Record(topics[kind], key.encode(), value, partition, headers)))

    def _step_topic(self, queue: str | None) -> str:
        name = f"steps/{queue}"
        if name not in self._topics:
            self._topics[name] = self._names.steps(queue or "")
        return self._topics[name]

    def dead_letter(self, record: Fetched, reason: str, detail: str) -> None:
        """Depends on the record alone: sent on every delivery, watermark or not."""
        letter = encode_message(dead_letter(record, reason, detail, "engine"))
        self.records.append(
            Output(Record(self._names.dead_letters, dead_letter_key(record), letter, record.partition))
        )

    def forward(self, record: Fetched, execution: str, home: int) -> None:
        """A record that came to another partition than its execution's goes on to that one, once."""
        if any(name == HEADER_HOPS for name, _ in record.headers):
            detail = f"the record came to partition {record.partition} twice; the execution's is {home}"
            self.dead_letter(record, "wrong_partition", detail)
        else:
            headers = (*record.headers, (HEADER_HOPS, b"1"))
            forwarded = Record(self._names.events, root_id(execution).encode(), record.value, home, headers)
            self.records.append(Output(forwarded))

    def disown(self, record: Fetched, message: m.RetryEnded) -> None:
        """Nothing is known of the root: its whole family is over, and what calls itself one of it can go."""
        forget = encode_message(m.RetryForget(execution=message.retry, run=message.run))
        root = message.execution.encode()
        self.records.append(Output(Record(self._names.events, root, forget, record.partition)))
