"""Which release this process runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """The installed version of FlowPilot."""
    try:
        return version("flowpilot")
    except PackageNotFoundError:
        return "unknown"  # run from a directory that was never installed
