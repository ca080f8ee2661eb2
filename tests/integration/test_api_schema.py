"""The API against its own description: schemathesis sends what the OpenAPI document allows, and what it forbids."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from flowpilot import Workflow
from flowpilot.adapters.postgres.migrations import upgrade
from flowpilot.app.workflows import apply_workflow
from flowpilot.settings import Settings
from tests.api_server import serving
from tests.integration.test_cli_roles import Cli
from tests.waiting import eventually

pytestmark = pytest.mark.integration

TOKEN = "a token that nobody guesses"
NOBODY = "00000000-0000-5000-8000-000000000000"
EXAMPLES = 15


@pytest.mark.timeout(500)
def test_schemathesis_finds_nothing(full_settings: Settings, tmp_path: Path) -> None:
    """With an engine and an audit writer, so that starts, cancels and retries are answered."""
    upgrade(full_settings.database_url.get_secret_value())
    settings = full_settings.model_copy(update={"api_tokens": {"fuzz": SecretStr(TOKEN)}})
    onboarding = Workflow("onboarding", version="1")
    onboarding.add_step(lambda: None, name="create_patient")
    asyncio.run(apply_workflow(settings, onboarding))
    cli = Cli(settings, tmp_path)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        cli.role("engine", ready="engine ready"),
        cli.role("audit", ready="audit ready"),
        serving(settings, longest_wait=0.05) as address,
        httpx.Client(base_url=address, headers=headers, timeout=30) as client,
    ):
        for key in ("p-16", "p-17"):
            started = client.post("/workflows/onboarding/executions", headers={"Idempotency-Key": key})
            assert started.status_code == 202
        assert client.post(f"/executions/{NOBODY}/cancel").status_code == 202
        eventually(lambda: client.get("/executions/" + started.json()["execution"]).is_success, 30, what="audit")
        eventually(lambda: client.get("/dead-letters/1").is_success, 30, what="the dead letter")
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json"),
            *("--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1", "--no-color"),
            *("--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure"),
            *("--header", f"Authorization: Bearer {TOKEN}", "--request-timeout", "30"),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=400, check=False, cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("FLOWPILOT_")},
        )  # fmt: skip
        assert client.get("/healthz").status_code == 200
    print(done.stdout[-3_000:])
    assert done.returncode == 0, done.stdout + done.stderr
