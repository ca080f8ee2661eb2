"""What others say, cut to a size: a state, its outbox and the history must not grow by somebody's long text."""

from __future__ import annotations

from flowpilot_schemas.codec import encode


def clipped(text: str, limit: int) -> str:
    """The beginning of `text` that takes at most `limit` bytes as a JSON string; all of it if it fits."""
    if 6 * len(text) + 2 <= limit:  # no character takes more
        return text
    text = text[: limit - 2]
    while (size := len(encode(text))) > limit:
        text = text[: len(text) * limit // size]
    return text


def clipped_or_none(text: str | None, limit: int) -> str | None:
    """`clipped`, for what may be missing."""
    return None if text is None else clipped(text, limit)
