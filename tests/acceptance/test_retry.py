"""`execution retry` as a user meets it: on real Kafka and PostgreSQL, through the command line and the client."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from flowpilot import Client, ExecutionFailed, RetryRefused
from flowpilot.cli.failures import Exit
from tests.acceptance.running import RunningSystem
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance


def calls(system: RunningSystem, execution: str) -> list[str]:
    lines = system.calls()
    return [line.split()[0] for line in lines if line.split()[1:] == [execution]]


def test_a_step_that_fails_until_it_is_mended(system: RunningSystem) -> None:
    mended = system.cwd / f"mended-{uuid.uuid4()}"
    given = f'"{mended}"'
    waiting = ("--wait", "--timeout", "60")
    failed = system.cli("execution", "start", "mending", "-i", given, *waiting, code=Exit.EXECUTION_FAILED)
    root = failed.stderr.split()[1]
    assert calls(system, root) == ["fetch", "parse"]

    broken = system.cli("execution", "retry", root, "-r", "perhaps", *waiting, code=Exit.EXECUTION_FAILED)
    first = broken.stderr.split()[1]
    assert first == f"{root}.1"
    assert calls(system, first) == ["parse"]

    mended.touch()
    done = system.cli_json("execution", "retry", first, "--reason", "the file is there", *waiting)
    second = f"{root}.2"
    assert done == {"execution": second, "status": "completed", "output": {"from": str(mended), "parsed": 1}}
    assert calls(system, second) == ["parse", "store"]

    refused = system.cli("execution", "retry", second, "-r", "why not", code=Exit.ERROR)
    assert "has completed" in refused.stderr
    assert "--from-start" in refused.stderr
    eventually(lambda: system.cli_json("execution", "show", second)["status"] == "completed")
    again = system.cli_json("execution", "retry", second, "-r", "once more", "--from-start", *waiting)
    assert again["execution"] == f"{root}.3"
    assert calls(system, f"{root}.3") == ["fetch", "parse", "store"]

    shown = eventually(
        lambda: found if (found := system.cli_json("execution", "show", second))["retries"] else None
    )
    assert (shown["parent"], shown["retries"]) == (first, [f"{root}.3"])
    assert (shown["retry_reason"], shown["created_by"]) == ("the file is there", "user:tester")
    assert [(task["step"], task["status"], task["attempt"], task["taken_from"]) for task in shown["tasks"]] == [
        ("parse", "completed", 1, None), ("store", "completed", 1, None), ("fetch", "completed", 0, root),
    ]  # fmt: skip
    assert system.cli_json("execution", "show", root)["retries"] == [first]
    for execution in (root, first, second, f"{root}.3"):
        system.cli("execution", "verify", execution)


def test_the_client_retries_and_is_told_why_not(system: RunningSystem) -> None:
    asyncio.run(_with_a_client(system))


async def _with_a_client(system: RunningSystem) -> None:
    mended = system.cwd / f"mended-{uuid.uuid4()}"
    async with Client(system.settings) as client:
        handle = await client.start("mending", str(mended))
        with pytest.raises(ExecutionFailed):
            await handle.result(60)
        retry = await client.retry(handle.id, "perhaps")
        with pytest.raises(ExecutionFailed):
            await retry.result(60)
        mended.touch()
        last = await client.retry(retry.id, "mended")
        assert await last.result(60) == {"from": str(mended), "parsed": 1}
        with pytest.raises(RetryRefused, match="retry_window") as refused:
            await client.retry(str(uuid.uuid4()), "nothing there")
        assert refused.value.refusal == "results_gone"
