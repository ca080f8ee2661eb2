"""The engine with its adapters: the one place that chooses them."""

from __future__ import annotations

from flowpilot.ports.log import Producer
from flowpilot.settings import Settings
from flowpilot_agents.contract import Engine


def build_engine(settings: Settings, producer: Producer) -> Engine:
    """The engine of these settings. All that it writes goes through `producer`."""
    raise NotImplementedError
