"""What became of a trigger record for a workflow: of all that was recorded, the current outcome.

A record may get several outcomes: the router reads it twice, or a worker refuses the input of the execution that
it started. All of them are kept. The current outcome is the one that was decided furthest along the pipeline,
whatever was recorded first:

    filtered < dead letter of the router < duplicate, key conflict < a run that it began

Of several runs that it began the newest counts: `dead_letter` if a worker refused its input, else `started` (or
`refused`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from flowpilot_schemas.messages import INPUT_INVALID


class Fate(NamedTuple):
    """What became of a record for one workflow (None: for all that read the topic).

    `fate`: `started`, `refused`, `duplicate`, `key_conflict` (each of `execution`, `run`), `filtered` or
    `dead_letter` (of `execution`, `run` if a worker refused the input), with the `reason`, and a sentence where
    there is one. `topic_id` tells topics of one name apart: a re-created topic has other records at its offsets.
    """

    workflow: str | None
    fate: str
    reason: str | None = None
    detail: str | None = None
    execution: str | None = None
    run: int | None = None
    topic_id: str | None = None


_RANKS = {"filtered": 0, "dead_letter": 1, "duplicate": 2, "key_conflict": 2}
_BEGUN = 3


def current(recorded: Iterable[Fate]) -> list[Fate]:
    """The current outcomes among those `recorded` of one place, by workflow, each once.

    There is one for each record and workflow, unless several triggers of the workflow name the topic with different
    keys: then one for each execution. Of two of the same rank the later given counts.
    """
    found = list(recorded)
    best: dict[tuple[str | None, str | None], int] = {}
    for fate in found:
        record = (fate.workflow, fate.topic_id)
        best[record] = max(_rank(fate), best.get(record, 0))
    newest: dict[tuple[str | None, ...], Fate] = {}
    for fate in found:
        record = (fate.workflow, fate.topic_id)
        known = newest.get((*record, fate.execution))
        if _rank(fate) == best[record] and (known is None or (known.run or 0) <= (fate.run or 0)):
            newest[*record, fate.execution] = fate
    order = sorted(newest, key=lambda place: [each or "" for each in place])
    return [newest[place] for place in order]


def _rank(fate: Fate) -> int:
    is_begun = fate.fate in ("started", "refused") or (fate.fate == "dead_letter" and fate.execution is not None)
    return _BEGUN if is_begun else _RANKS[fate.fate]


def begun(
    workflow: str | None,
    execution: str,
    run: int | None,
    topic_id: str | None,
    status: str,
    reason: str | None,
    errors: object,
) -> Fate:
    """The outcome of a record that began a run, by the run's row in the audit record."""
    place = (execution, run, topic_id)
    if status == "refused":
        return Fate(workflow, "refused", None, reason, *place)
    if status == "failed" and reason == INPUT_INVALID:
        return Fate(workflow, "dead_letter", reason, _detail(errors), *place)
    return Fate(workflow, "started", None, None, *place)


def _detail(errors: object) -> str | None:
    for error in errors.values() if isinstance(errors, dict) else ():
        if isinstance(error, dict) and error.get("kind") == INPUT_INVALID:
            return str(error.get("message"))
    return None
