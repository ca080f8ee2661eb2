"""From a step message to a call, and from what came of it to an outcome: output JSON, or an error.

Whatever a handler does short of ending the process becomes an outcome; nothing is raised here.
"""

from __future__ import annotations

import contextvars
import inspect
from typing import Any, NamedTuple

from pydantic import ValidationError

from flowpilot.authoring.context import StepContext
from flowpilot.authoring.errors import NonRetryable, RetryAfter, first_problem
from flowpilot.authoring.results import NotSerialisable, to_json
from flowpilot.core.bounds.checks import TooCostly
from flowpilot.worker.handlers import Handler, Value
from flowpilot_schemas.codec import encode
from flowpilot_schemas.limits import MAX_ERROR_MESSAGE
from flowpilot_schemas.messages import INPUT_INVALID, RESERVED_KINDS, StepError, StepReady

Outcome = bytes | StepError
_MISSING = object()


class _Refused(Exception):
    """The handler is not called, or its result not taken; `error` says why."""

    def __init__(self, kind: str, message: str) -> None:
        self.error = StepError(kind=kind, message=message, retryable=False)


def call(handler: Handler, message: StepReady, context: StepContext | None) -> Outcome:
    """Run a plain handler here, in this thread."""
    try:
        arguments = _arguments(handler, message, context)
        result = contextvars.copy_context().run(handler.call, **arguments)
        if inspect.isawaitable(result):
            _discard(result)
            raise _Refused(
                "result_not_serialisable", "the handler returned an awaitable; declare it with async def"
            )
        return _output(handler, message, result)
    except BaseException as error:  # noqa: BLE001 - also SystemExit: it would end the thread and lose the step
        return failure(handler, error)


class Prepared(NamedTuple):
    """A handler's validated arguments, and where they were validated."""

    arguments: dict[str, Any]
    context: contextvars.Context


def prepare(handler: Handler, message: StepReady, context: StepContext | None) -> Prepared | StepError:
    """Validate the arguments here, in this thread: for an async handler whose types are not `validates_quickly`."""
    try:
        return Prepared(_arguments(handler, message, context), contextvars.copy_context())
    except BaseException as error:  # noqa: BLE001 - validators are the user's code; see `call`
        return failure(handler, error)


async def call_async(
    handler: Handler, message: StepReady, context: StepContext | None, prepared: Prepared | None = None
) -> Outcome:
    """Run an async handler in this task, with what was `prepared`. A cancellation is an outcome too."""
    try:
        arguments = _arguments(handler, message, context) if prepared is None else prepared.arguments
        return _output(handler, message, await handler.call(**arguments))
    except BaseException as error:  # noqa: BLE001 - asyncio lets SystemExit and KeyboardInterrupt stop the loop
        return failure(handler, error)


def failure(handler: Handler, error: BaseException) -> StepError:
    """The error of an attempt that raised."""
    if isinstance(error, _Refused):
        return error.error
    kind = type(error).__name__[:200]
    if kind in RESERVED_KINDS:
        kind = f"{type(error).__module__}.{kind}"[:200]
    after = error.delay_ms if isinstance(error, RetryAfter) else None
    retryable = not isinstance(error, NonRetryable) and not handler.retry.refuses(error)
    return StepError(kind=kind, message=_message(error), retryable=retryable, retry_after_ms=after)


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        code = error.code
        return f"the handler called sys.exit({code!r}); raise an exception to fail, return to complete"[:1_000]
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - the user's __str__
        text = f"({type(broken).__name__} while the message was made)"
    data = text.encode(errors="replace")
    if len(data) <= MAX_ERROR_MESSAGE:
        return data.decode()
    return data[: MAX_ERROR_MESSAGE - 3].decode(errors="ignore") + "…"


def _arguments(handler: Handler, message: StepReady, context: StepContext | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if handler.context is not None:
        arguments[handler.context] = context
    # The execution's own input first: if that does not fit, nothing else matters.
    for value in sorted(handler.values, key=lambda value: value.source != "input"):
        try:
            found = _given(value, message)
            if found is not _MISSING:
                arguments[value.name] = found
        except ValidationError as error:
            raise _misfit(handler, message, value, first_problem(error)) from None
        except TooCostly as costly:
            raise _misfit(handler, message, value, str(costly)) from None
    return arguments


def _given(value: Value, message: StepReady) -> Any:
    if value.source == "parents":
        return {name: _validated(value, output) for name, output in message.parents.items()}
    if value.source == "input":
        given: Any = message.input
    elif value.source == "args":
        given = (message.args or {}).get(value.name, _MISSING)
    else:
        given = message.parents.get(value.parent, _MISSING)
    if given is _MISSING:
        # A null may be left out on the wire; and another version may not send what this one takes.
        if not value.required:
            return _MISSING
        given = None
    return _validated(value, given)


def _validated(value: Value, given: Any) -> Any:
    if value.adapter is None:
        return given
    # As JSON, so that strict models take what JSON can say (dates, UUIDs).
    data = encode(given)
    if value.bounds is not None:
        value.bounds.check(given, data)
    return value.adapter.validate_json(data)


def _misfit(handler: Handler, message: StepReady, value: Value, problem: str) -> _Refused:
    what = {"input": "the input", "args": f"the argument {value.name!r}", "parents": "the parents' outputs"}.get(
        value.source, f"the output of {value.parent!r}"
    )
    return _Refused(
        INPUT_INVALID if value.source == "input" else "arguments_invalid",
        f"{what}, made by version {message.version!r} of workflow {message.workflow!r}, does not fit step "
        f"{message.step!r} of version {handler.version!r}, which this worker has: {problem}",
    )


def _output(handler: Handler, message: StepReady, result: Any) -> bytes:
    try:
        data = b"null" if result is None else to_json(result, handler.returns)
    except NotSerialisable as error:
        raise _Refused("result_not_serialisable", f"the result ({_type(result)}) is not JSON: {error}") from None
    if len(data) > message.result_limit:
        raise _Refused(
            "result_too_large",
            f"the result has {len(data)} bytes; the limit FLOWPILOT_RESULT_LIMIT is {message.result_limit}: "
            "keep the data elsewhere and return where it is",
        )
    return data


def _type(value: Any) -> str:
    return type(value).__qualname__


def _discard(awaitable: Any) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()
