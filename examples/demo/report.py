"""What the ledger and the definition promise, what the audit record holds, and the table that compares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg2
from rich.table import Table

from examples.patient_onboarding import meets_busy_gateway, onboarding

# The facts that the definition determines. Kills add others: retries of lost attempts, answers that came twice.
DETERMINED = """
    type in ('ExecutionStarted', 'StepCompleted', 'ExecutionCompleted')
    or type = 'StepReady' and attempt = 1
"""
REPEATS = """
    select distinct repeat.execution_id, convert_from(repeat.body, 'UTF8')::jsonb -> 'origin'
    from audit_event repeat join workflow_execution e using (execution_id, run)
    where repeat.type = 'StartDeduplicated'
      and (convert_from(repeat.body, 'UTF8')::jsonb -> 'origin' -> 'offset')::bigint
          is distinct from e.origin_offset
"""
FOUND = {
    "started": "select count(*) from workflow_execution where run is not null",
    "duplicates": f"select count(*) from ({REPEATS}) as repeats",
    "dead letters": "select count(*) from dead_letter",
    "completed": "select count(*) from workflow_execution where status = 'completed'",
    "retries after the injected error": """
        select count(*) from task_execution t join workflow_execution e on e.id = t.workflow_execution_id
        where t.step_name = 'send_otp' and t.attempt > 1 and e.key = any(%(unlucky)s)
    """,
    "steps": "select count(*) from task_execution where status = 'completed'",
    "audit records": f"""
        select (select count(*) from audit_event where {DETERMINED}) + (select count(*) from ({REPEATS}) as repeats)
    """,
    "audit records that diverge": "select count(*) from audit_divergence",
}
# Shown only: how often these happen depends on what was in a process's hands when it was killed.
SHOWN = {
    "attempts repeated after kills": """
        select count(*) from audit_event
        where type = 'StepRetryScheduled'
          and convert_from(body, 'UTF8')::jsonb -> 'error' ->> 'kind' <> 'GatewayBusy'
    """,
    "answers that came twice": "select count(*) from audit_event where type = 'CompletionIgnored'",
}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file. A line that is still being written is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def expected(ledger: list[dict[str, Any]]) -> dict[str, int]:
    """What must be found: from the ledger and the definition alone."""
    patients = {line["patient_id"] for line in ledger if line["kind"] != "malformed"}
    steps = len(onboarding.definition.steps)
    mails = sum(step.queue == "notify" for step in onboarding.definition.steps)
    duplicates = sum(line["kind"] != "malformed" for line in ledger) - len(patients)
    return {
        "started": len(patients),
        "duplicates": duplicates,
        "dead letters": sum(line["kind"] == "malformed" for line in ledger),
        "completed": len(patients),
        "retries after the injected error": sum(map(meets_busy_gateway, patients)),
        "steps": steps * len(patients),
        # started and completed once, each step ready and completed once; a repeated trigger is noted as such
        "audit records": (2 + 2 * steps) * len(patients) + duplicates,
        "audit records that diverge": 0,
        "patients": len(patients),
        "patients activated": len(patients),
        "mails": mails * len(patients),
    }


class Audit:
    """The audit record, read with plain SQL."""

    def __init__(self, database_url: str) -> None:
        self._connection = psycopg2.connect(database_url)
        self._connection.autocommit = True

    def found(self, ledger: list[dict[str, Any]]) -> dict[str, int]:
        """What is compared."""
        patients = {line["patient_id"] for line in ledger if line["kind"] != "malformed"}
        unlucky = [patient for patient in patients if meets_busy_gateway(patient)]
        return {name: count(self._connection, query, {"unlucky": unlucky}) for name, query in FOUND.items()}

    def shown(self) -> dict[str, int]:
        """What is shown beside it."""
        return {name: count(self._connection, query) for name, query in SHOWN.items()}

    def live(self) -> int:
        """Executions that have started and not ended."""
        return count(self._connection, "select count(*) from workflow_execution where status = 'running'")

    def completed(self) -> int:
        """Executions that have completed."""
        return count(self._connection, FOUND["completed"])


def count(connection: Any, query: str, values: Mapping[str, Any] | None = None) -> int:
    """The one number that a query gives."""
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        [number] = cursor.fetchone() or (0,)
        return int(number)


def comparison(
    published: int, promised: Mapping[str, int], found: Mapping[str, int], shown: Mapping[str, int]
) -> Table:
    """The final table."""
    table = Table(title="Patient onboarding", title_justify="left")
    table.add_column("")
    table.add_column("expected", justify="right")
    table.add_column("found", justify="right")
    table.add_column("")
    table.add_row("published", f"{published:,}", "", "")
    for name, number in promised.items():
        agrees = found[name] == number
        mark = "[green]=[/]" if agrees else "[bold red]differs[/]"
        table.add_row(name, f"{number:,}", f"{found[name]:,}", mark)
    for name, number in shown.items():
        table.add_row(f"[dim]{name}[/]", "", f"[dim]{number:,}[/]", "[dim]shown[/]")
    return table
