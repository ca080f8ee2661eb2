"""`except FlowPilotError` catches whatever the public API says that it raises."""

from __future__ import annotations

import builtins
import inspect
import re

import pytest

import flowpilot
from flowpilot.client.blocking import BlockingClient
from flowpilot.client.handle import Handle
from flowpilot.core.errors import FlowPilotError


def _said() -> dict[str, set[str]]:
    """The names of errors in the docstrings of the public API, and where each stands."""
    said: dict[str, set[str]] = {}
    for public in (*(getattr(flowpilot, name) for name in flowpilot.__all__), BlockingClient, Handle):
        members = [public]
        if inspect.isclass(public):
            members += [found for name, found in inspect.getmembers(public) if not name.startswith("_")]
        for member in members:
            for sentence in re.findall(r"[Rr]aises? (.*?)(?:\. |\.$|$)", " ".join((member.__doc__ or "").split())):
                for name in re.findall(r"`([A-Z][a-z]+[A-Z]\w+)`", sentence):
                    said.setdefault(name, set()).add(getattr(member, "__qualname__", str(member)))
    return said


def _rooted(root: type[BaseException]) -> dict[str, type[BaseException]]:
    found = {root.__name__: root}
    for below in root.__subclasses__():
        found |= _rooted(below)
    return found


SAID = _said()


def test_there_are_some() -> None:
    assert {"UnknownWorkflow", "VersionConflict", "ExecutionFailed", "UnknownQueue"} <= SAID.keys()


@pytest.mark.parametrize("name", sorted(SAID))
def test_an_error_that_is_announced_is_a_flowpilot_error(name: str) -> None:
    assert name in _rooted(FlowPilotError) or hasattr(builtins, name), f"named by {SAID[name]}"
