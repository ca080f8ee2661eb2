"""What ends the router."""

from __future__ import annotations


class RouterStopped(Exception):
    """What the router produced was refused for good; nothing of the batch was committed."""
