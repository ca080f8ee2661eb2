"""What users write: workflows, steps, triggers, retries, and the context of a handler."""

from flowpilot.authoring.context import StepContext
from flowpilot.authoring.errors import DefinitionError, InputInvalid, NonRetryable, RetryAfter
from flowpilot.authoring.retry import Retry
from flowpilot.authoring.signature import output_of
from flowpilot.authoring.step import Step
from flowpilot.authoring.triggers import on_topic
from flowpilot.authoring.workflow import Workflow

__all__ = [
    "DefinitionError",
    "InputInvalid",
    "NonRetryable",
    "Retry",
    "RetryAfter",
    "Step",
    "StepContext",
    "Workflow",
    "on_topic",
    "output_of",
]
