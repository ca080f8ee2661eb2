"""When a failed attempt is tried again."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from flowpilot.authoring.durations import Duration, milliseconds
from flowpilot_schemas.definition import RetryPolicy


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed attempt is followed by another: `Retry(max_attempts=5, non_retryable=(KeyError,))`.

    Attempt n + 1 begins `initial · backoff^(n-1)`, at most `max_interval`, after attempt n failed (jittered);
    durations are `"30s"` or timedelta. `max_attempts` counts the first one too; lost workers and time-outs count.
    `non_retryable` names exceptions (classes, or class names as strings) after which there is no next attempt;
    subclasses count. Raises ValueError where a value is out of range.
    """

    max_attempts: int = 3
    initial: Duration = "1s"
    backoff: float = 2.0
    max_interval: Duration = "1m"
    non_retryable: tuple[type[BaseException] | str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.non_retryable, str | type):
            object.__setattr__(self, "non_retryable", (self.non_retryable,))
        for item in self.non_retryable:
            if not (isinstance(item, str) or (isinstance(item, type) and issubclass(item, BaseException))):
                raise ValueError(f"non_retryable takes exception classes or their names, not {item!r}")
        self.policy()

    def policy(self) -> RetryPolicy:
        """As the definition holds it. Raises ValueError with one sentence."""
        try:
            return RetryPolicy(
                max_attempts=self.max_attempts,
                initial_ms=milliseconds(self.initial),
                backoff=self.backoff,
                max_interval_ms=milliseconds(self.max_interval),
                non_retryable=tuple(_name(item) for item in self.non_retryable),
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            field = str(first["loc"][0]).removesuffix("_ms")
            raise ValueError(f"Retry({field}=…) cannot be used: {first['msg']}") from None

    def refuses(self, error: BaseException) -> bool:
        """Whether `error` is one of `non_retryable`."""
        return bool(self.non_retryable) and not {_name(item) for item in self.non_retryable}.isdisjoint(
            ancestor.__name__ for ancestor in type(error).__mro__
        )


def _name(item: type[BaseException] | str) -> str:
    return item if isinstance(item, str) else item.__name__
