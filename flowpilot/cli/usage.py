"""What was written wrongly on the command line, in the manner of all our errors: `error: …` is the last line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from flowpilot.cli.output import say
from flowpilot.cli.safe import escaped

# Typer has pydantic look at values, which speaks to programmers.
_PLAINLY = {"Value error, ": "", "Input should": "it should", "(s) (": "s ("}


def is_usage(error: BaseException) -> bool:
    """Whether Typer refused what was written. (Where it has the class from changed with its releases.)"""
    return "ClickException" in _names(error)


def report_usage(error: Any, root: Any, arguments: Sequence[str]) -> None:
    """Tell the user on stderr: how it is used, where the help is, what is wrong and what may have been meant.

    `root` is Typer's command of the name `flowpilot`, which was given `arguments`.
    """
    if "NoArgsIsHelpError" in _names(error):
        error.show()  # the help itself
        return
    context = getattr(error, "ctx", None) or _context(root, arguments)
    say(context.get_usage())
    say(f"Try '{context.command_path} {context.help_option_names[-1]}' for help.\n")
    print(f"error: {escaped(_sentence(error, root))}", file=sys.stderr, flush=True)


def _context(root: Any, arguments: Sequence[str]) -> Any:
    """That of the command which `arguments` name: not every error comes with its own."""
    context = root.context_class(root, info_name="flowpilot", **root.context_settings)
    for word in arguments:
        command = getattr(context.command, "commands", {}).get(word)
        if command is not None:
            context = command.context_class(command, info_name=word, parent=context, **command.context_settings)
        elif not word.startswith("-"):
            break
    return context


def _sentence(error: Any, root: Any) -> str:
    if "NoSuchOption" in _names(error):
        return f"no such option: {error.option_name}{_meant(error.possibilities or ())}"
    told = " ".join(error.format_message().split())
    for theirs, ours in _PLAINLY.items():
        told = told.replace(theirs, ours)
    told = (told[:1].lower() + told[1:]).rstrip(".")
    if told.startswith("no such command '") and told.endswith("'"):
        told += _meant(_elsewhere(told.split("'")[1], root))
    return told


def _elsewhere(name: str, root: Any) -> list[str]:
    """Where there is a command of this name: whoever leaves out its group, or writes one too many, means it."""
    found = [f"flowpilot {name}"] if name in root.commands else []
    return found + [
        f"flowpilot {group} {name}"
        for group, command in root.commands.items()
        if name in getattr(command, "commands", ())
    ]


def _meant(words: Sequence[str]) -> str:
    return f". Did you mean {' or '.join(repr(word) for word in words)}?" if words else ""


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
