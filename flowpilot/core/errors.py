"""The root of all errors that FlowPilot raises for its users."""

from __future__ import annotations


class FlowPilotError(Exception):
    """One sentence that says what is wrong and, where there is one, the remedy."""
