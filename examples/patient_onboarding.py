"""Onboarding a patient: create the record, send an OTP and an e-mail in parallel, then activate.

    flowpilot workflow apply examples.patient_onboarding:onboarding
    flowpilot worker examples.patient_onboarding:onboarding

The gateways are pretended ones that take their time; a tenth of the patients meets a busy OTP gateway first.
"""

from __future__ import annotations

import asyncio
import hashlib
import time

from pydantic import BaseModel

from flowpilot import Retry, StepContext, Workflow, on_topic


class NewPatient(BaseModel):
    patient_id: str
    email: str
    phone: str


class Patient(BaseModel):
    patient_id: str
    phone: str


class OtpSent(BaseModel):
    phone: str
    reference: str


class Activated(BaseModel):
    patient_id: str
    otp_reference: str


class GatewayBusy(Exception):
    """The OTP gateway refused for now."""


onboarding = Workflow(
    "patient-onboarding",
    version="1",
    input=NewPatient,
    triggers=[on_topic("patients.registered", unique_by="patient_id")],
)


def meets_busy_gateway(patient_id: str) -> bool:
    """Whether the first attempt for this patient is refused: one in ten, always the same ones."""
    return hashlib.sha256(patient_id.encode()).digest()[0] % 10 == 0


@onboarding.step
def create_patient(input: NewPatient) -> Patient:
    time.sleep(0.02)
    return Patient(patient_id=input.patient_id, phone=input.phone)


@onboarding.step(queue="notify", retry=Retry(max_attempts=8, initial="500ms"), timeout="30s", heartbeat="5s")
async def send_otp(create_patient: Patient, ctx: StepContext) -> OtpSent:
    await asyncio.sleep(0.7)
    if ctx.attempt == 1 and meets_busy_gateway(create_patient.patient_id):
        raise GatewayBusy("try again")
    return OtpSent(phone=create_patient.phone, reference=ctx.idempotency_key[:8])


@onboarding.step(queue="notify", retry=Retry(max_attempts=8, initial="500ms"), timeout="30s", heartbeat="5s",
                 depends_on=[create_patient])  # fmt: skip
async def send_email(input: NewPatient) -> None:
    await asyncio.sleep(0.6)


@onboarding.step(depends_on=[send_email], output=True)
def activate(input: NewPatient, send_otp: OtpSent) -> Activated:
    time.sleep(0.02)
    return Activated(patient_id=input.patient_id, otp_reference=send_otp.reference)
