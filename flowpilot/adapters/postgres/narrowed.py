"""Lists of which only some rows are wanted."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute

Selected = TypeVar("Selected")

MOST = 1_000
"""Rows of one page."""


def narrowed(found: Select[Selected], *equal: tuple[InstrumentedAttribute[Any], Any]) -> Select[Selected]:
    """Only rows whose column is the value of each pair; None: any."""
    return found.where(*(column == value for column, value in equal if value is not None))
