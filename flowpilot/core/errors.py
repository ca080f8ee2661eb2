"""The root of every error that a user of FlowPilot may want to catch."""

from __future__ import annotations


class FlowPilotError(Exception):
    """Whatever FlowPilot raises on purpose; the message is a sentence that says what to do."""
