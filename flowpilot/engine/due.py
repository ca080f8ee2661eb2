"""What becomes due when: one entry an execution, however often its time changes."""

from __future__ import annotations

import heapq


class DueIndex:
    """The earliest times of many executions, in ms. A changed or removed time leaves a stale heap entry behind
    that is passed over when its turn comes."""

    def __init__(self) -> None:
        self._due: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._due)

    def set(self, execution: str, due: int | None) -> None:
        """Replace the execution's time; None removes it."""
        if due is None:
            self._due.pop(execution, None)
        elif self._due.get(execution) != due:
            self._due[execution] = due
            heapq.heappush(self._heap, (due, execution))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(due, execution) for execution, due in self._due.items()]
            heapq.heapify(self._heap)

    def reached(self, now: int, limit: int) -> list[str]:
        """Up to `limit` executions whose time is ≤ `now`, earliest first. They stay in the index."""
        found = self._pop(now, limit)
        for due, execution in found:
            heapq.heappush(self._heap, (due, execution))
        return [execution for _, execution in found]

    def due(self, execution: str) -> int:
        """The time of an execution that is in the index."""
        return self._due[execution]

    def earliest(self) -> int | None:
        """The earliest time there is."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _pop(self, now: int, limit: int) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        seen: set[str] = set()
        while self._heap and self._heap[0][0] <= now and len(found) < limit:
            due, execution = heapq.heappop(self._heap)
            if self._due.get(execution) == due and execution not in seen:
                seen.add(execution)
                found.append((due, execution))
        return found
