"""Exit codes, and the one sentence for each way a command can fail."""

from __future__ import annotations

import os
import sys
from enum import IntEnum

from flowpilot.cli.safe import escaped
from flowpilot.core.errors import FlowPilotError


class Exit(IntEnum):
    """The exit codes of every command."""

    OK = 0
    ERROR = 1
    USAGE = 2
    EXECUTION_FAILED = 3
    TIMED_OUT = 4
    CANCELLED = 5
    NOT_FOUND = 6
    UNREACHABLE = 7
    INTERRUPTED = 130


class CommandFailed(FlowPilotError):
    """Ends the command with `code`; the message is what the user reads."""

    def __init__(self, message: str, code: Exit = Exit.ERROR) -> None:
        super().__init__(message)
        self.code = code


# By name, along the class's ancestors: an error's module is loaded only if the error was raised, and this table
# must not load them all for a `--help`.
_CODES = {
    "DevNotRunning": Exit.UNREACHABLE,
    "SettingsError": Exit.USAGE,
    "InputInvalid": Exit.USAGE,
    "OpenToAll": Exit.USAGE,
    "UnknownWorkflow": Exit.NOT_FOUND,
    "WorkflowDeleted": Exit.NOT_FOUND,
    "NobodyReads": Exit.NOT_FOUND,
    "TopicMissing": Exit.NOT_FOUND,
    "ExecutionFailed": Exit.EXECUTION_FAILED,
    "ExecutionRefused": Exit.EXECUTION_FAILED,
    "ExecutionCancelled": Exit.CANCELLED,
    "ResultTimeout": Exit.TIMED_OUT,
    "RetryUnanswered": Exit.TIMED_OUT,
    "UnknownExecution": Exit.NOT_FOUND,
    "LogUnavailable": Exit.UNREACHABLE,
    "KafkaUnreachable": Exit.UNREACHABLE,
    "StoreUnavailable": Exit.UNREACHABLE,
    "AuditUnavailable": Exit.UNREACHABLE,
    "DatabaseUnreachable": Exit.UNREACHABLE,
}


def explain(error: BaseException) -> tuple[str, Exit]:
    """The sentence and the exit code for `error`."""
    if isinstance(error, CommandFailed):
        return str(error), error.code
    names = [kind.__name__ for kind in type(error).__mro__]
    code = next((_CODES[name] for name in names if name in _CODES), Exit.ERROR)
    if "LogUnavailable" in names:
        servers = os.environ.get("FLOWPILOT_BOOTSTRAP_SERVERS", "")
        where = f" at {servers}" if servers else ""
        return f"Kafka{where} did not answer ({error}); start it or set FLOWPILOT_BOOTSTRAP_SERVERS", code
    # These say what to do next themselves.
    told = {"KafkaUnreachable", "DatabaseUnreachable", "DevNotRunning"}
    if {"KafkaUnreachable", "DatabaseUnreachable"}.intersection(names):
        from flowpilot.settings import could_use_dev

        return f"{error}{', or run `flowpilot dev` in this folder' if could_use_dev() else ''}", code
    if code is Exit.UNREACHABLE and not told.intersection(names):
        return f"PostgreSQL did not answer ({error}); start it or set FLOWPILOT_DATABASE_URL", code
    if code is not Exit.ERROR or isinstance(error, FlowPilotError):
        return str(error) or names[0], code
    return f"unexpected {names[0]}: {error} (`flowpilot --debug …` shows where)", code


def report(error: BaseException) -> Exit:
    """Tell the user on stderr; the exit code."""
    sentence, code = explain(error)
    print(f"error: {escaped(sentence)}", file=sys.stderr)
    return code
