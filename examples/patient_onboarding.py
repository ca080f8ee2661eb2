"""Onboarding a patient: a row in PostgreSQL, then a one-time password and an e-mail in parallel, then activation.

    python -m examples.patient_onboarding                              # makes the table
    flowpilot workflow apply examples.patient_onboarding:onboarding
    flowpilot worker examples.patient_onboarding:onboarding

Settings: CLINIC_DATABASE_URL (postgresql://user:password@host:port/database), CLINIC_MAIL_SERVER (host:port),
CLINIC_OTP_SECRET. A server that does not answer is a failed attempt, and tried again.

A worker that dies after an effect and before its answer is tried again too, so each effect bears a repetition: the
row is an upsert, the password is the same in every attempt, and the Message-ID is the step's idempotency key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage

import aiosmtplib
from pydantic import BaseModel
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from flowpilot import NonRetryable, Retry, StepContext, Workflow, on_topic

MAIL_SERVER = os.environ.get("CLINIC_MAIL_SERVER", "127.0.0.1:1025")
DATABASE_URL = os.environ.get("CLINIC_DATABASE_URL", "postgresql://clinic@127.0.0.1:5432/clinic")
OTP_SECRET = os.environ.get("CLINIC_OTP_SECRET", "not a secret").encode()

# One pool for all threads of the worker. Nothing is connected yet; a connection that broke is replaced when used.
database = create_engine(
    make_url(DATABASE_URL).set(drivername="postgresql+psycopg2"),
    pool_pre_ping=True,
    connect_args={"connect_timeout": 5},
)

PATIENTS = """
    create table if not exists patients (
        patient_id   text primary key,
        email        text not null,
        phone        text not null,
        created_by   text not null,
        writes       integer not null default 1,
        activated_at timestamptz
    )
"""


class NewPatient(BaseModel):
    patient_id: str
    email: str
    phone: str


class Patient(BaseModel):
    patient_id: str
    phone: str


class OtpSent(BaseModel):
    phone: str
    message_id: str  # not the password: outputs are kept in the audit record


class Activated(BaseModel):
    patient_id: str
    otp_message_id: str


class Unavailable(Exception):
    """A server of the clinic's does not do its part now."""


class GatewayBusy(Exception):
    """The gateway for text messages refused for now."""


onboarding = Workflow(
    "patient-onboarding",
    version="1",
    input=NewPatient,
    triggers=[on_topic("patients.registered", unique_by="patient_id")],
    retry=Retry(max_attempts=8, initial="500ms"),
)


@onboarding.step
def create_patient(input: NewPatient, ctx: StepContext) -> Patient:
    with transaction() as connection:
        connection.execute(
            text("""
                insert into patients (patient_id, email, phone, created_by)
                values (:patient_id, :email, :phone, :key)
                on conflict (patient_id) do update
                set email = excluded.email, phone = excluded.phone, writes = patients.writes + 1
            """),
            {**input.model_dump(), "key": ctx.idempotency_key},
        )
    return Patient(patient_id=input.patient_id, phone=input.phone)


@onboarding.step(queue="notify", timeout="30s", heartbeat="5s")
async def send_otp(create_patient: Patient, ctx: StepContext) -> OtpSent:
    if ctx.attempt == 1 and meets_busy_gateway(create_patient.patient_id):
        raise GatewayBusy("try again")
    number = "".join(filter(str.isdigit, create_patient.phone))
    mail = letter(ctx, f"{number}@sms.clinic.example", "Your password", one_time_password(ctx.idempotency_key))
    await deliver(mail)
    return OtpSent(phone=create_patient.phone, message_id=mail["Message-ID"])


@onboarding.step(queue="notify", timeout="30s", heartbeat="5s", depends_on=[create_patient])
async def send_email(input: NewPatient, ctx: StepContext) -> None:
    await deliver(letter(ctx, input.email, "Welcome", "Your account is ready once you have entered your password."))


@onboarding.step(depends_on=[send_email], output=True)
def activate(input: NewPatient, send_otp: OtpSent) -> Activated:
    with transaction() as connection:
        updated = connection.execute(
            text("""
                update patients set activated_at = coalesce(activated_at, current_timestamp)
                where patient_id = :patient_id
            """),
            {"patient_id": input.patient_id},
        )
    if updated.rowcount == 0:
        raise NonRetryable(f"patient {input.patient_id} was deleted before the activation")
    return Activated(patient_id=input.patient_id, otp_message_id=send_otp.message_id)


def meets_busy_gateway(patient_id: str) -> bool:
    """Whether the first attempt is refused, to show a retry: one patient in ten, always the same ones."""
    return hashlib.sha256(patient_id.encode()).digest()[0] % 10 == 0


def one_time_password(idempotency_key: str) -> str:
    """Six digits, the same ones in every attempt."""
    digest = hmac.digest(OTP_SECRET, idempotency_key.encode(), "sha256")
    return f"{int.from_bytes(digest) % 1_000_000:06d}"


def letter(ctx: StepContext, to: str, subject: str, body: str) -> EmailMessage:
    """A mail that is the same one in every attempt of its step, by its Message-ID."""
    mail = EmailMessage()
    mail["Message-ID"] = f"<{ctx.idempotency_key}@clinic.example>"
    mail["From"] = "no-reply@clinic.example"
    mail["To"] = to
    mail["Subject"] = subject
    mail.set_content(body)
    return mail


async def deliver(mail: EmailMessage) -> None:
    """Returns once the mail server has taken it."""
    host, _, port = MAIL_SERVER.rpartition(":")
    try:
        await aiosmtplib.send(mail, hostname=host, port=int(port), timeout=10)
    except aiosmtplib.SMTPConnectError as error:
        raise Unavailable(f"the mail server {MAIL_SERVER} (CLINIC_MAIL_SERVER): {error}") from error


@contextmanager
def transaction() -> Iterator[Connection]:
    """A connection for one transaction, committed at the end of the block."""
    try:
        with database.begin() as connection:
            yield connection
    except DBAPIError as error:
        reason = str(error.orig).partition("\n")[0]
        raise Unavailable(f"the clinic's database (CLINIC_DATABASE_URL): {reason}") from error


if __name__ == "__main__":
    with transaction() as connection:
        connection.execute(text(PATIENTS))
