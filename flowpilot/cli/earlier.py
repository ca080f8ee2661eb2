"""Whether a key that an execution is started with has one already, as far as the audit record tells in time."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowpilot.adapters.postgres.earlier import Earlier
    from flowpilot.settings import Settings

# Seconds that a start waits for the answer once Kafka has taken it: whoever asks in vain shall not notice.
WITHIN = 0.2


class Glance:
    """One look into the audit record, taken while the start is on its way. That it fails is nobody's concern."""

    def __init__(self, settings: Settings, workflow: str, key: str) -> None:
        self._workflow, self._key = workflow, key
        self._found: Earlier | None = None
        # No executor's thread: the process would wait in its end for a server that does not answer.
        self._thread = Thread(target=self._look, args=(settings.database_url.get_secret_value(),), daemon=True)
        self._thread.start()

    def _look(self, database_url: str) -> None:
        try:
            from flowpilot.adapters.postgres.earlier import earlier
            from flowpilot_schemas.ids import keyed_execution_id

            self._found = earlier(database_url, keyed_execution_id(self._workflow, self._key))
        except Exception:  # noqa: BLE001 - no PostgreSQL, no driver for it, no tables: then nothing is said
            return

    def sentence(self, start: int | None, input: Any) -> str | None:
        """What is to be said of a start at the offset `start`; None: nothing, or nothing was found out in time."""
        from flowpilot_schemas.codec import content_hash

        self._thread.join(WITHIN)
        found = self._found
        if found is None or start is None or found.run >= start:  # the audit was quick: that is this start's own
            return None
        other = ", with another input, which it keeps" if content_hash(found.input) != content_hash(input) else ""
        ends = "a new run begins only if its window has passed" if found.has_ended else "no other one begins"
        return f"key {self._key!r} has this execution already ({found.status}{other}): {ends}"
