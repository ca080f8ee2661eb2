"""What a root's state says of its retries: who runs, until when all are kept, and where inputs and outputs lie."""

from __future__ import annotations

from collections.abc import Sequence

from flowpilot.core.state import Execution, Retry
from flowpilot_schemas.ids import retry_id


def window_after_end(root: Execution, until: int) -> tuple[tuple[Retry, ...], int]:
    """The retries of a root whose run has ended and is kept until then, and the root's new `forget_at`: when the
    family may be forgotten or, while a retry runs, that one is checked."""
    running = open_retry(root.retries)
    if running is None or root.forget_at is None:
        return root.retries, window(root.retries, until)
    longer = running._replace(until=max(running.until, until))
    return tuple([longer if retry is running else retry for retry in root.retries]), root.forget_at


def window(retries: Sequence[Retry], until: int = 0) -> int:
    """When a family may be forgotten that nobody runs of, if its root alone might be at `until`."""
    return max([until, *(retry.until for retry in retries)])


def open_retry(retries: Sequence[Retry]) -> Retry | None:
    """The one that has not ended, as far as the root knows."""
    return next((retry for retry in retries if retry.is_open), None)


def find(state: Execution, number: int) -> Retry | None:
    """The retry of that number."""
    return next((retry for retry in state.retries if retry.number == number), None)


def run_of(state: Execution, number: int) -> int | None:
    """The run of the root (0) or a retry, if it is known."""
    retry = find(state, number)
    if retry is not None:
        return retry.run
    return state.run if number == 0 and not state.forgotten else None


def places(state: Execution, number: int) -> list[tuple[str, int]]:
    """Where the outputs lie that the execution has: its own, and those of whom it retries, up to a fresh start."""
    places: list[tuple[str, int]] = []
    while True:
        run = run_of(state, number)
        if run is None:
            return places
        places.append((retry_id(state.id, number), run))
        retry = find(state, number)
        if retry is None or retry.from_start:
            return places
        number = retry.of


def input_of(state: Execution, number: int) -> tuple[str, int] | None:
    """Where the input of the execution lies; None if nobody holds it (one that has completed keeps none)."""
    while (retry := find(state, number)) is not None and not retry.own_input:
        number = retry.of
    run = run_of(state, number)
    status = retry.status if retry is not None else "refused" if state.refused else str(state.status)
    if run is None or status in ("completed", "refused"):
        return None
    return retry_id(state.id, number), run
