"""What every command does first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowpilot.settings import Settings


def begin(role: str = "cli") -> Settings:
    """The settings, with logging set up by them on stderr: stdout is data alone. Raises `SettingsError`."""
    from flowpilot.app.logging import configure_logging
    from flowpilot.settings import load_settings

    settings = load_settings()
    configure_logging(settings, role)
    return settings
