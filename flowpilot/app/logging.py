"""Logging of every role: structured, on stderr, quiet unless asked.

What is bound by `structlog.contextvars` (execution, step, attempt) stands in every line of that context; the
libraries' own loggers come out in the same form.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from flowpilot.settings import Settings

# Locals may be anybody's input, tokens and passwords; both renderers would print them unless told not to.
_TRACEBACKS_AS_JSON = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)

# They say at DEBUG and INFO what happens a record; at WARNING what an operator can do something about.
_CHATTY = ("aiokafka", "faust", "mode", "sqlalchemy", "alembic", "asyncio")


def configure_logging(settings: Settings, role: str) -> None:
    """Set up this process's logging by `FLOWPILOT_LOG_LEVEL` and `FLOWPILOT_LOG_FORMAT`. May be called again."""
    shared = _shared(role)
    _configure_structlog(settings, shared)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(settings.log_format),
            ],
        )
    )
    level = _level(settings)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def quieten(settings: Settings, role: str) -> None:
    """For FlowPilot inside somebody else's process: set up structlog unless they did, and touch nothing else.

    Without it structlog would print everything, to stdout.
    """
    if not structlog.is_configured():
        _configure_structlog(settings, _shared(role))


def _configure_structlog(settings: Settings, shared: list[Any]) -> None:
    structlog.configure(
        processors=[*shared, structlog.processors.UnicodeDecoder(), *_rendering(settings.log_format)],
        wrapper_class=structlog.make_filtering_bound_logger(_level(settings)),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def _shared(role: str) -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Role(role),
    ]


def _level(settings: Settings) -> int:
    return logging.getLevelNamesMapping()[settings.log_level.upper()]


def _rendering(form: str) -> list[Any]:
    if form == "json":
        return [_TRACEBACKS_AS_JSON, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    ]


class _Role:
    """Adds which role speaks."""

    def __init__(self, role: str) -> None:
        self._role = role

    def __call__(self, logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        event["role"] = self._role
        return event
