"""Two engines of one FLOWPILOT_MEMBER_ID: they take the partitions from each other for ever, and aiokafka, which
does not know the broker's word for it, says little. Here it becomes a sentence."""

from __future__ import annotations

import logging

COORDINATOR = "aiokafka.consumer.group_coordinator"
# What aiokafka says when the broker does not know its member any more. Of a static one, who stays known when it is
# restarted, there are two causes.
FORGOTTEN = "local member_id was not recognized"


class Namesakes(logging.Filter):
    """Lets the coordinator's errors pass, and of its warnings this one alone, in our words: a heartbeat that is
    answered with a rebalance is in order."""

    def __init__(self, member: str | None) -> None:
        super().__init__()
        self._member = member

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        if record.levelno >= logging.ERROR:
            return True
        if self._member is None or FORGOTTEN not in record.getMessage():
            return False
        record.args = ()
        record.msg = (
            f"another process has joined as {self._member!r}, and the partitions went to it (or this one stood "
            "still for longer than its session): give every engine a FLOWPILOT_MEMBER_ID of its own, or none"
        )
        return True


def tell_of_namesakes(member: str | None) -> None:
    """From now on, for this process. `member`: its static name, if it has one."""
    coordinator = logging.getLogger(COORDINATOR)
    coordinator.setLevel(logging.WARNING)
    for earlier in list(coordinator.filters):
        coordinator.removeFilter(earlier)
    coordinator.addFilter(Namesakes(member))
