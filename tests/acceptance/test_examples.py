"""The examples as a reader runs them: the command line, real workers, real files, real mail."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from examples.demo.report import read_lines
from examples.patient_onboarding import PATIENTS, meets_busy_gateway
from flowpilot.local.ports import answers, free_ports
from flowpilot.local.system import LocalSystem
from tests.acceptance.running import PATIENCE, ROOT, RunningSystem
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance


@contextmanager
def worker(system: RunningSystem, workflow: str, environment: dict[str, str] | None = None) -> Iterator[None]:
    """A further worker, for an example."""
    name = f"worker-{workflow.partition(':')[2]}"
    other = LocalSystem(system.services, environment={**system.environment, **(environment or {})}, cwd=system.cwd)
    other.start(name, "worker", workflow, ready_timeout=PATIENCE)
    try:
        yield
    finally:
        system.supervisor.stop(name)


def test_checksums_of_a_tree_are_those_of_its_files(system: RunningSystem, tmp_path: Path) -> None:
    root, report = tmp_path / "tree", tmp_path / "report"
    for number in range(40):
        file = root / f"{number % 4}" / f"file {number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(1_000 * number))
    (root / "link").symlink_to("nowhere")
    command = ("execution", "start", "checksums", "--wait", "--timeout", "60", "-o", "json", "--input")
    with worker(system, "examples.checksums:checksums"):
        tree = json.dumps({"root": str(root), "report": str(report)})
        ended = json.loads(system.cli(*command, tree).stdout)
    assert ended["output"] == {
        "report": str(report), "files": 40, "bytes": sum(1_000 * n for n in range(40)), "problems": 0,
    }  # fmt: skip
    files = {str(path.relative_to(root)): path for path in root.rglob("file *")}
    assert report.read_text().splitlines() == [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}" for name, path in sorted(files.items())
    ]
    assert sorted(os.listdir(tmp_path)) == ["report", "tree"]
    assert system.ended(ended["execution"]).status == "completed"
    started = system.told(ended["execution"], "StepReady", 11)
    assert {event["step"] for event in started} == {"prepare", "join", "tidy", *(f"part-{n}" for n in range(8))}


def test_onboarding_waits_for_its_servers_and_repeats_no_effect(system: RunningSystem, tmp_path: Path) -> None:
    patient = next(name for n in range(99) if meets_busy_gateway(name := f"p-{n:05d}"))
    database, mails, [port] = f"{system.namespace}_clinic", tmp_path / "mails", free_ports(1)
    clinic = {
        "CLINIC_DATABASE_URL": system.services.create_database(database),
        "CLINIC_MAIL_SERVER": f"127.0.0.1:{port}",
    }
    connection = psycopg2.connect(clinic["CLINIC_DATABASE_URL"])
    connection.autocommit = True
    given = json.dumps({"patient_id": patient, "email": "anna@clinic.example", "phone": "+49 30 901820"})
    try:
        with connection.cursor() as rows, worker(system, "examples.patient_onboarding:onboarding", clinic):
            started = system.cli_json("execution", "start", "patient-onboarding", "--input", given)
            [retry] = system.told(started["execution"], "StepRetryScheduled")[:1]
            assert (retry["step"], retry["error"]["kind"]) == ("create_patient", "Unavailable")
            assert 'relation "patients" does not exist' in retry["error"]["message"]
            rows.execute(PATIENTS)

            def refused() -> list[dict[str, str]]:
                told = system.told(started["execution"], "StepRetryScheduled")
                return [event["error"] for event in told if event["step"] == "send_email"]

            error = eventually(refused, PATIENCE)[0]
            assert error["kind"] == "Unavailable"
            assert f"127.0.0.1:{port} (CLINIC_MAIL_SERVER)" in error["message"]
            script = ROOT / "examples/demo/mail_server.py"
            system.supervisor.start(
                "mail-server", [sys.executable, script, str(port), mails, "0"], ready=lambda: answers(port)
            )
            assert system.ended(started["execution"]).status == "completed"
            rows.execute("select patient_id, writes, activated_at is not null from patients")
            assert rows.fetchall() == [(patient, 1, True)]
    finally:
        if "mail-server" in system.supervisor.names():
            system.supervisor.stop("mail-server")
        connection.close()
        system.services.drop_database(database)
    key = f"{started['execution']}/{retry['run']}"
    assert {mail["message_id"] for mail in read_lines(mails)} == {
        f"<{key}/{step}@clinic.example>" for step in ("send_otp", "send_email")
    }
    assert len(read_lines(mails)) == 2
