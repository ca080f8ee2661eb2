"""Whether a type reads the JSON that it writes: a step's result reaches the next step by way of JSON.

What is found here cannot work, whatever the value; what depends on the value, or on the user's code, is left to the
worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from flowpilot.authoring.accepted import accepted_schema, names_of

_Core = Mapping[str, Any]
_PARTS = ("schema", "items_schema", "values_schema", "lax_schema", "json_schema")


def unread(adapter: TypeAdapter[Any]) -> str | None:
    """Why the type never reads what it writes, with the remedy: a part of a sentence."""
    if accepted_schema(adapter) is False:
        return "no JSON fits it; use a pydantic model, a dataclass or plain types"
    return next(_problems(adapter.core_schema, {}, {}, set()), None)


def _problems(core: _Core, config: _Core, known: dict[str, _Core], seen: set[str]) -> Iterator[str]:
    kind = core["type"]
    if "serialization" in core or kind in ("function-before", "function-wrap", "function-plain"):
        return  # the user's code writes or reads it
    if kind == "definitions":
        known = {**known, **{each["ref"]: each for each in core["definitions"]}}
    elif kind == "definition-ref":
        ref = core["schema_ref"]
        if ref in known and ref not in seen:
            seen.add(ref)
            yield from _problems(known[ref], config, known, seen)
        return
    elif kind == "json":
        yield "Json[…] is written as the value and read as its text; annotate the type of the value itself"
        return
    elif kind in ("model", "dataclass"):
        if core.get("custom_init"):
            return
        config = core.get("config") or {}
        of = f"{core['cls'].__name__} "
        yield from (of + problem for problem in _of_fields(core["schema"], config))
    if kind in ("model-fields", "dataclass-args", "typed-dict"):
        fields = core["fields"]
        for field in fields.values() if isinstance(fields, Mapping) else fields:
            yield from _problems(field["schema"], config, known, seen)
        return
    for name in _PARTS:
        part = core.get(name)
        for each in part if isinstance(part, list) else [part] if part is not None else []:
            yield from _problems(each, config, known, seen)
        if part is not None and name != "items_schema":
            return


def _of_fields(core: _Core, config: _Core) -> Iterator[str]:
    """What is wrong with the fields of a model or dataclass, whose `core` this is."""
    while core["type"] in ("function-after", "definitions") and "serialization" not in core:
        core = core["schema"]
    if core["type"] not in ("model-fields", "dataclass-args") or "serialization" in core:
        return
    forbids = (core.get("extra_behavior") or config.get("extra_fields_behavior")) == "forbid"
    computed = core.get("computed_fields") or []
    if forbids and computed:
        name = computed[0]["property_name"]
        yield f'writes its computed field {name!r} and forbids it as an extra; use extra="ignore"'
    fields = core["fields"].items() if core["type"] == "model-fields" else [(f["name"], f) for f in core["fields"]]
    for name, field in fields:
        written = None if field.get("serialization_exclude") else field.get("serialization_alias") or name
        read = {key for key, is_whole in names_of(name, field, config) if is_whole}
        needed = field["schema"]["type"] != "default"
        if written not in read and (needed or (forbids and written is not None)):
            how = "does not write" if written is None else f"writes as {written!r} and does not read there"
            yield f"has the field {name!r} which it {how}; use alias= or validate_by_name=True"
