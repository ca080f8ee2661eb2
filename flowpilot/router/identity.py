"""Which topic a name stands for at present: a topic that was deleted and created again is another one.

A fetch names a partition, not a topic id: librdkafka goes on at the same offset in the new topic, without an error
if the offset is there. An id never comes back. So what was read between two questions that gave the same id is of
the topic with that id; everything that is read of a partition is checked so before anything is made of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from flowpilot.ports.log import LogUnavailable, TopicCatalog

Answer = TypeVar("Answer")


class IdentityChanged(LogUnavailable):
    """The topic of this name is another one than when reading began, or there is none."""


class Shared(Generic[Answer]):
    """A question that several tasks ask at once: each gets the answer of a run that began after it asked."""

    def __init__(self, ask: Callable[[], Awaitable[Answer]]) -> None:
        self._ask = ask
        self._running: asyncio.Future[Answer] | None = None
        self._next: asyncio.Future[Answer] | None = None

    async def __call__(self) -> Answer:
        """Ask, or wait for the answer to who asks next. Raises what the question raises."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._run(self._running))
        return await asyncio.shield(self._next)

    async def _run(self, before: asyncio.Future[Answer] | None) -> Answer:
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        return await self._ask()


class TopicIds:
    """The ids of topics, asked of the catalog after the call. Raises `LogUnavailable` if it does not answer."""

    def __init__(self, catalog: TopicCatalog) -> None:
        self._catalog = catalog
        self._wanted: set[str] = set()
        self._shared = Shared(self._answer)

    async def of(self, topics: Iterable[str]) -> dict[str, str]:
        """The id of each of `topics` that exists and may be described."""
        wanted = set(topics)
        if not wanted:
            return {}
        self._wanted |= wanted
        found = await self._shared()
        return {topic: found[topic] for topic in wanted if topic in found}

    async def require(self, topic: str, topic_id: str) -> None:
        """Return if the topic still has this id. Raises `IdentityChanged`."""
        found = await self.of([topic])
        if found.get(topic) != topic_id:
            raise IdentityChanged(gone(topic) if topic not in found else f"topic {topic} was created again")

    async def _answer(self) -> dict[str, str]:
        wanted, self._wanted = self._wanted, set()
        return await self._catalog.topic_ids(wanted)


def gone(topic: str) -> str:
    """What a topic without an id is, as a sentence."""
    return f"there is no topic {topic}, or the router may not describe it"
