"""What the engine's process prints: little, to stderr."""

from __future__ import annotations

import logging
import sys

import structlog

from flowpilot.settings import Settings

# At DEBUG, where Faust leaves them, these format a line for every record: about a fifth of the CPU.
LIBRARIES = ("faust", "mode", "aiokafka", "asyncio")


def set_up_logging(settings: Settings) -> None:
    """Log as the settings say; the libraries only from WARNING up."""
    level = getattr(logging, settings.log_level.upper())
    renderer = (
        structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.dict_tracebacks
            if settings.log_format == "json"
            else structlog.processors.StackInfoRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s [%(levelname)s] %(name)s: %(message)s")
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    # A tick that waits for a batch is late, and that is in order.
    logging.getLogger("mode.timers").setLevel(logging.ERROR)
