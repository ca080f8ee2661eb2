"""One running system for all acceptance tests that leave it as they found it: its start is paid once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowpilot.local.services import LocalServices
from tests.acceptance import flows
from tests.acceptance.running import RunningSystem, running_system

KIB = 1024
TRIGGER_LIMIT, RESULT_LIMIT, STEP_INPUTS_LIMIT = 16 * KIB, 16 * KIB, 24 * KIB


@pytest.fixture(scope="session")
def system(services: LocalServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Every role once, serving all of `flows`, with small limits. At the end the whole audit is verified."""
    limits = {
        "FLOWPILOT_TRIGGER_LIMIT": str(TRIGGER_LIMIT),
        "FLOWPILOT_RESULT_LIMIT": str(RESULT_LIMIT),
        "FLOWPILOT_STEP_INPUTS_LIMIT": str(STEP_INPUTS_LIMIT),
    }
    folder = tmp_path_factory.mktemp("system")
    with running_system(services, folder, flows.ALL, limits) as system:
        yield system
        system.cli("execution", "verify")
