"""`python -m flowpilot_agents`: one process of the engine."""

from __future__ import annotations

import sys

from flowpilot.settings import SettingsError, load_settings
from flowpilot_agents.compose import build_engine
from flowpilot_agents.start import run


def main() -> None:
    """Run until stopped. Exit codes: 0 stopped, 1 cannot start, 7 Kafka cannot be reached, 70 ended in doubt."""
    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    run(settings, build_engine)


if __name__ == "__main__":
    main()
