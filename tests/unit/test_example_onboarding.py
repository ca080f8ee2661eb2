"""The handlers of examples/patient_onboarding.py, called as plain functions, and the demo's arithmetic."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP
from rich.console import Console
from sqlalchemy import StaticPool, create_engine, text

from examples import patient_onboarding as example
from examples.demo.mail_server import Keeper
from examples.demo.report import comparison, expected, read_lines
from examples.patient_onboarding import NewPatient, OtpSent, Patient, Unavailable
from flowpilot import NonRetryable, StepContext
from flowpilot.local.ports import free_ports
from flowpilot_schemas.ids import TaskId

EXECUTION = "1c2f3a4b-0000-5000-8000-000000000001"
LUCKY, UNLUCKY = "p-00001", next(p for n in range(99) if example.meets_busy_gateway(p := f"p-{n:05d}"))
ANNA = NewPatient(patient_id=LUCKY, email="anna@clinic.example", phone="+49 30 901820")
SENT = OtpSent(phone=ANNA.phone, message_id="<…>")


def context(step: str, attempt: int = 1) -> StepContext:
    return StepContext(TaskId(EXECUTION, 7, step, attempt))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The patients, in a database of this process; call it for (patient id, writes, activated at)."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    monkeypatch.setattr(example, "database", engine)
    with example.transaction() as connection:
        connection.execute(text(example.PATIENTS))

    def rows() -> list[tuple[Any, ...]]:
        with engine.connect() as connection:
            found = connection.execute(text("select patient_id, writes, activated_at from patients"))
            return [tuple(row) for row in found]

    return rows


@asynccontextmanager
async def mail_server(monkeypatch: pytest.MonkeyPatch, mails: Path) -> AsyncIterator[None]:
    """The demo's mail server, in this loop."""
    keeper = Keeper(str(mails), delay=0)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(keeper, hostname="localhost"), "127.0.0.1", 0)
    async with server:
        monkeypatch.setattr(example, "MAIL_SERVER", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        yield


def test_a_repeated_write_is_one_patient(rows: Any) -> None:
    assert example.create_patient(ANNA, context("create_patient")) == Patient(patient_id=LUCKY, phone=ANNA.phone)
    example.create_patient(ANNA, context("create_patient", 2))
    assert rows() == [(LUCKY, 2, None)]


def test_activation_happens_once(rows: Any) -> None:
    with pytest.raises(NonRetryable, match=LUCKY):
        example.activate(ANNA, SENT)
    example.create_patient(ANNA, context("create_patient"))
    example.activate(ANNA, SENT)
    [(_, writes, activated_at)] = rows()
    assert activated_at is not None
    with example.transaction() as connection:
        connection.execute(text("update patients set activated_at = '2001-01-01'"))
    assert example.activate(ANNA, SENT).otp_message_id == SENT.message_id
    assert rows() == [(LUCKY, writes, "2001-01-01")]


def test_mails_are_the_same_in_every_attempt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def deliver() -> OtpSent:
        async with mail_server(monkeypatch, tmp_path / "mails"):
            patient = Patient(patient_id=LUCKY, phone=ANNA.phone)
            sent = await example.send_otp(patient, context("send_otp"))
            assert await example.send_otp(patient, context("send_otp", 2)) == sent
            await example.send_email(ANNA, context("send_email"))
            return sent

    sent = asyncio.run(deliver())
    first, again, welcome = read_lines(tmp_path / "mails")
    assert first == again == {
        "message_id": f"<{EXECUTION}/7/send_otp@clinic.example>",
        "to": ["4930901820@sms.clinic.example"],
        "subject": "Your password",
        "text": example.one_time_password(f"{EXECUTION}/7/send_otp"),
    }  # fmt: skip
    assert sent.message_id == first["message_id"]
    assert first["text"].isdigit()
    assert first["text"] not in sent.model_dump_json().replace(sent.message_id, "")
    assert (welcome["message_id"], welcome["to"]) == (
        f"<{EXECUTION}/7/send_email@clinic.example>", ["anna@clinic.example"],
    )  # fmt: skip


def test_a_busy_gateway_is_met_in_the_first_attempt_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def deliver() -> None:
        async with mail_server(monkeypatch, tmp_path / "mails"):
            patient = Patient(patient_id=UNLUCKY, phone="1")
            with pytest.raises(example.GatewayBusy):
                await example.send_otp(patient, context("send_otp"))
            await example.send_otp(patient, context("send_otp", 2))

    asyncio.run(deliver())
    assert len(read_lines(tmp_path / "mails")) == 1


def test_passwords_differ_and_need_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = {example.one_time_password(f"{EXECUTION}/{n}/send_otp") for n in range(20)}
    assert len(passwords) > 15
    assert all(len(password) == 6 for password in passwords)
    before = example.one_time_password("key")
    monkeypatch.setattr(example, "OTP_SECRET", b"another")
    assert example.one_time_password("key") != before


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    monkeypatch.setattr(example, "MAIL_SERVER", f"127.0.0.1:{port}")
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port} \(CLINIC_MAIL_SERVER\).*(refused|failed)"):
        asyncio.run(example.send_email(ANNA, context("send_email")))
    address = example.database.url.set(host="127.0.0.1", port=port)
    monkeypatch.setattr(example, "database", create_engine(address))
    with pytest.raises(Unavailable, match=r"CLINIC_DATABASE_URL.*refused"):
        example.create_patient(ANNA, context("create_patient"))


def test_the_table_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "database", create_engine("sqlite://"))
    with pytest.raises(Unavailable, match="patients"):
        example.create_patient(ANNA, context("create_patient"))


def test_what_is_expected_comes_from_the_ledger_and_the_definition() -> None:
    ledger = [
        {"kind": "new", "patient_id": LUCKY},
        {"kind": "new", "patient_id": UNLUCKY},
        {"kind": "duplicate", "patient_id": LUCKY},
        {"kind": "malformed", "patient_id": None},
    ]
    assert expected(ledger) == {
        "started": 2,
        "duplicates": 1,
        "dead letters": 1,
        "completed": 2,
        "retries after the injected error": 1,
        "steps": 8,
        "audit records": 21,
        "audit records that diverge": 0,
        "patients": 2,
        "patients activated": 2,
        "mails": 4,
    }


def test_the_table_marks_what_differs() -> None:
    console = Console(width=100)
    with console.capture() as printed:
        console.print(comparison(3, {"patients": 2, "mails": 4}, {"patients": 2, "mails": 3}, {"repeated": 5}))
    told = {line.split("│")[1].strip(): line for line in printed.get().splitlines() if "│" in line}
    assert "=" in told["patients"]
    assert "differs" in told["mails"]
    assert "shown" in told["repeated"]


def test_a_line_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    assert read_lines(file) == []
    file.write_text(json.dumps({"a": 1}) + "\n" + '{"a":')
    assert read_lines(file) == [{"a": 1}]
