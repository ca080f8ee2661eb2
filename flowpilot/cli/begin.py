"""What every command does first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from flowpilot.cli.output import say

if TYPE_CHECKING:
    from flowpilot.settings import Settings


def begin(role: str = "cli", *, kafka: bool = False) -> Settings:
    """The settings, with logging set up by them on stderr: stdout is data alone. With `kafka`, a broker answers.

    Raises `SettingsError`, `KafkaUnreachable`.
    """
    from flowpilot.app.logging import configure_logging
    from flowpilot.settings import load_settings

    settings = load_settings()
    configure_logging(settings, role)
    if kafka:
        reach(settings)
    return settings


def reach(settings: Settings) -> None:
    """Return once Kafka has answered. Raises `KafkaUnreachable`."""
    from flowpilot.app.kafka import reach_kafka

    # Who reads a log is told by the error how it ended; who sits at a terminal wants to know meanwhile.
    reach_kafka(settings, say if sys.stderr.isatty() else lambda _: None)
