"""What ends the router."""

from __future__ import annotations

from flowpilot.core.errors import FlowPilotError


class RouterStopped(FlowPilotError):
    """What the router produced was refused for good; nothing of the batch was committed."""
