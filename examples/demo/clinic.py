"""What the clinic has of its own, and where the workflow's effects are: a database and a mail server."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import psycopg2

from examples.demo.report import count, read_lines
from examples.patient_onboarding import PATIENTS
from flowpilot.local.ports import LOOPBACK, answers, free_ports
from flowpilot.local.services import LocalServices

SERVER = Path(__file__).with_name("mail_server.py")
# The mail server's, for each mail. It makes executions that last long enough to be killed on their way.
DELAY = 0.7


class Clinic:
    """A database beside FlowPilot's on the same server, and a mail server as a process of its own."""

    def __init__(self, services: LocalServices) -> None:
        database_url = services.create_database("clinic")
        self._connection = psycopg2.connect(database_url)
        self._connection.autocommit = True
        with self._connection.cursor() as cursor:
            cursor.execute(PATIENTS)
        self.mails = services.data_dir / "mails.jsonl"
        [port] = free_ports(1)
        services.supervisor.start(
            "mail-server",
            [sys.executable, SERVER, str(port), self.mails, str(DELAY)],
            ready=lambda: answers(port),
        )
        self.environment = {"CLINIC_DATABASE_URL": database_url, "CLINIC_MAIL_SERVER": f"{LOOPBACK}:{port}"}
        """What the workers have to know."""

    def found(self) -> dict[str, int]:
        """What is compared: how many patients there are, and different mails."""
        return {
            "patients": count(self._connection, "select count(*) from patients"),
            "patients activated": count(
                self._connection, "select count(*) from patients where activated_at is not null"
            ),
            "mails": len(self._deliveries()),
        }

    def shown(self) -> dict[str, int]:
        """What is shown beside it: effects that happened again, because a worker was killed before its answer."""
        return {
            "patients written more than once": count(
                self._connection, "select count(*) from patients where writes > 1"
            ),
            "mails delivered more than once": sum(times > 1 for times in self._deliveries().values()),
        }

    def _deliveries(self) -> Counter[str]:
        """How often each mail was delivered, by its Message-ID."""
        return Counter(mail["message_id"] for mail in read_lines(self.mails))
