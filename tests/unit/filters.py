"""An ordinary type that contains itself twice, and values of it that cost a validator all its time."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class And(BaseModel):
    args: list[And | Or | str]


class Or(BaseModel):
    args: list[And | Or | str]


class TaggedAnd(BaseModel):
    kind: Literal["and"]
    args: list[Annotated[TaggedAnd | TaggedOr, Field(discriminator="kind")] | str]


class TaggedOr(BaseModel):
    kind: Literal["or"]
    args: list[Annotated[TaggedAnd | TaggedOr, Field(discriminator="kind")] | str]


Tagged = Annotated[TaggedAnd | TaggedOr, Field(discriminator="kind")]


def nested(levels: int, leaf: Any = 1, **fields: Any) -> Any:
    """So many filters in one another. The leaf fits if it is a text."""
    value = leaf
    for _ in range(levels):
        value = {**fields, "args": [value]}
    return value
