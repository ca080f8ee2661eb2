"""A trigger's `where`: a CEL expression that is true for the records that start an execution.

It sees `data`, the workflow's input, and `event`, the attributes of a CloudEvent (`{}` for plain JSON). CEL has
no loops of its own but the macros over lists: one of `all`, `exists`, `exists_one` is taken, so that the time
grows with the record and not with its square; `map` and `filter` copy their result at every element.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flowpilot.core.bounds.checks import TooCostly
from flowpilot.core.bounds.expression import ExpressionBounds
from flowpilot_schemas.codec import BadRecord
from flowpilot_schemas.limits import MAX_WHERE

if TYPE_CHECKING:
    import cel

_VARIABLES = frozenset({"data", "event"})
_TYPES = frozenset({"int", "uint", "double", "string", "bool", "bytes"})
_FUNCTIONS = frozenset(
    {
        *("size", "contains", "startsWith", "endsWith", "matches", "type", "dyn"),
        *("int", "uint", "double", "string", "bytes", "timestamp", "duration"),
        *("getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"),
        *("getHours", "getMinutes", "getSeconds", "getMilliseconds"),
    }
)
_MACROS = frozenset({"all", "exists", "exists_one"})

_STRING = (
    r"""[rR][bB]?(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"[^"\n]*"|'[^'\n]*')|[bB][rR](?:"[^"\n]*"|'[^'\n]*')"""
    r"""|[bB]?(?:\"{3}(?:\\.|.)*?\"{3}|'{3}(?:\\.|.)*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""
)
_SKIPPED = re.compile(rf"(?P<string>(?<!\w)(?:{_STRING}))|//[^\n]*", re.DOTALL)
_MACRO = re.compile(r"\.\s*(all|exists|exists_one|existsOne|map|filter)\s*\(\s*(\w*)")
_PATTERN = re.compile(rf"\bmatches\s*\(\s*({_STRING})\s*\)", re.DOTALL)


class Where:
    """A compiled expression. Raises ValueError, with one phrase that says what is wrong with it."""

    def __init__(self, text: str) -> None:
        import cel  # brings a command line of its own: half a second that most workflows need not pay

        if len(text) > MAX_WHERE:
            raise ValueError(f"it has {len(text)} characters; at most {MAX_WHERE}")
        try:
            self._program = cel.compile(text)
        except (ValueError, UnicodeEncodeError) as error:
            raise ValueError(_syntax(str(error))) from None
        code = _SKIPPED.sub(lambda found: '""' if found["string"] else " ", text)
        _check_loops(code, self._program)
        patterns = _PATTERN.findall(text)
        begins = [(macro.end() - len(macro[2]), macro[2]) for macro in _MACRO.finditer(code)]
        self._bounds = ExpressionBounds(code, begins, [len(literal) for literal in patterns])
        for literal in patterns:
            try:
                cel.evaluate(f'"".matches({literal})')
            except RuntimeError:
                raise ValueError(f"matches({literal}) is not a regular expression (RE2 syntax)") from None
        self._reads = _VARIABLES.intersection(self._program.variables())

    def __call__(self, data: Any, event: dict[str, Any] | None) -> bool:
        """Whether it is true. What is missing in the record does not match.

        Raises `BadRecord("where_failed")` if it cannot be told: the types do not fit, it is no boolean, or it could
        take too long.
        """
        try:
            self._bounds.check(data, event)
        except TooCostly as costly:
            raise BadRecord("where_failed", f"where {self._program.source!r}: {costly}") from None
        # Only what is read is converted, which is most of the work.
        given = {name: data if name == "data" else event or {} for name in self._reads}
        try:
            answer = self._program.execute(given)
        except (KeyError, IndexError):
            return False
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise BadRecord("where_failed", f"where {self._program.source!r}: {_failure(error)}") from None
        if not isinstance(answer, bool):
            found = f"where {self._program.source!r} is a {type(answer).__name__}, not true or false"
            raise BadRecord("where_failed", found)
        return answer


@lru_cache(maxsize=1_000)
def compiled(text: str) -> Where | str:
    """The expression, or what is wrong with it: definitions may come from anybody."""
    try:
        return Where(text)
    except ValueError as error:
        return str(error)


def _check_loops(code: str, program: cel.Program) -> None:
    macros = _MACRO.findall(code)
    for name, _ in macros:
        if name not in _MACROS:
            raise ValueError(f"it uses {name}(…), which takes too long on a large record: write exists or all")
    if len(macros) > 1:
        raise ValueError("it has more than one of all, exists and exists_one: a record could hold up all others")
    for name in program.functions():
        known = not name.isidentifier() or name in _FUNCTIONS or name.startswith("_")
        if not known or (name == "@not_strictly_false" and not macros):
            raise ValueError(f"there is no function {name}(…)")
    bound = {variable for _, variable in macros}
    for name in program.variables():
        if name not in _VARIABLES | _TYPES | bound:
            raise ValueError(f"there is no variable {name!r}: a record's fields are data.…, a CloudEvent's event.…")


def _syntax(message: str) -> str:
    _, found, problem = message.partition("ERROR: <input>:")
    if not found:
        return "it is not CEL"
    line, column, problem = problem.partition("\n")[0].split(":", 2)
    if "Recursion limit" in problem:
        problem = "it is nested too deeply"
    # What would have been expected instead is half the grammar.
    return f"{problem.partition(' expecting ')[0].strip()[:200]} (line {line}, column {column})"


def _failure(error: Exception) -> str:
    # The library calls a function undefined that has no form for the type at hand; that it is there was checked.
    if isinstance(error, TypeError) or str(error).startswith("Undefined"):
        return "its types do not fit this record (null, text and numbers are not compared with one another)"
    return str(error).partition("\n")[0][:200]
