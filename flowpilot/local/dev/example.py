"""A small input that a JSON Schema takes, to begin with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

_DEEPEST = 8


def example(schema: dict[str, Any], now: datetime | None = None) -> Any:
    """The schema's own example or default, else what format, name and type suggest; objects have what they must.

    `now`: of dates and times. A `pattern` is not followed.
    """
    return _Examples(schema, now or datetime.now(UTC)).of(schema, "", 0)


class _Examples:
    def __init__(self, root: dict[str, Any], now: datetime) -> None:
        self._root = root
        at = now.replace(microsecond=0).isoformat().replace("+00:00", "Z")
        self._formats = {
            "date": at[:10],
            "date-time": at,
            "time": at[11:],
            "duration": "PT1H",
            "email": "ada@example.com",
            "hostname": "example.com",
            "ipv4": "192.0.2.1",
            "ipv6": "2001:db8::1",
            "uri": "https://example.com/",
            "uuid": "6f1c0b1e-0d0f-4d0e-8a53-2f7f4c1f0b11",
        }

    def of(self, schema: dict[str, Any], name: str, depth: int) -> Any:
        if "$ref" in schema and depth < _DEEPEST:
            return self.of(self._referred(str(schema["$ref"])), name, depth + 1)
        for key in ("examples", "enum"):
            if schema.get(key):
                return schema[key][0]
        for key in ("default", "const"):
            if key in schema:
                return schema[key]
        for key in ("anyOf", "oneOf", "allOf"):
            if schema.get(key) and depth < _DEEPEST:
                return self.of(schema[key][0], name, depth + 1)
        kind = schema.get("type")
        if kind == "object" or "properties" in schema:
            properties, wanted = schema.get("properties", {}), schema.get("required", [])
            return {each: self.of(properties.get(each, {}), each, depth + 1) for each in wanted if depth < _DEEPEST}
        if kind == "array":
            items, count = schema.get("items", {}), schema.get("minItems", 0)
            return [self.of(items, name, depth + 1) for _ in range(count) if depth < _DEEPEST]
        if kind in ("integer", "number"):
            return _number(schema)
        return {"boolean": True, "null": None}.get(str(kind), self._text(schema, name))

    def _referred(self, reference: str) -> dict[str, Any]:
        found: Any = self._root
        for part in reference.removeprefix("#/").split("/"):
            found = found.get(part, {}) if isinstance(found, dict) else {}
        return found if isinstance(found, dict) else {}

    def _text(self, schema: dict[str, Any], name: str) -> str:
        if found := self._formats.get(schema.get("format", "")):
            return found
        text = self._named(name.lower()) or str(schema.get("title", name or "text")).lower()
        return text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]

    def _named(self, name: str) -> str | None:
        """What a text of that name may be."""
        words = name.replace("-", "_").split("_")
        if words[-1] == "id" and len(words) > 1:
            return f"{words[-2]}-1"
        return next((text for word, text in _NAMES.items() if word in words), None) or (
            self._formats["date"] if words[-1] in ("date", "day") else None
        )


_NAMES = {
    "email": "ada@example.com",
    "mail": "ada@example.com",
    "phone": "+49 30 901820",
    "url": "https://example.com/",
    "currency": "EUR",
    "country": "DE",
}


def _number(schema: dict[str, Any]) -> Any:
    """1 if the bounds allow it, else what is nearest to the lower one."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is None and above is not None:
        within = schema.get("type") == "number" and below is not None and below <= above + 1
        low = (above + below) / 2 if within else above + 1
    if high is None and below is not None:
        high = below - 1
    if low is not None and (low > 1 or (high is not None and high < 1)):
        return low
    return min(1, high) if high is not None else 1
