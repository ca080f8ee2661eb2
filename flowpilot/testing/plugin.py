"""The pytest fixture. Installed with FlowPilot; imports nothing heavy before a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flowpilot.testing import BlockingEnvironment


@pytest.fixture
def flowpilot_env() -> Iterator[Callable[..., BlockingEnvironment]]:
    """Makes environments that are closed with the test: `env = flowpilot_env(onboarding)`.

    For tests without async; an async test opens its own: `async with WorkflowEnvironment(onboarding) as env:`.
    """
    from flowpilot.testing import WorkflowEnvironment

    with ExitStack() as stack:

        def make(*workflows: Any, **options: Any) -> BlockingEnvironment:
            return stack.enter_context(WorkflowEnvironment.blocking(*workflows, **options))

        yield make
