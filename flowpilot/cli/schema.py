"""`flowpilot schema`: the JSON Schemas of the public messages."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

import typer

from flowpilot.cli.begin import begin
from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.output import Format, Output, record, rows


def schema(
    message: Annotated[str | None, typer.Argument(help="A message's name; all are listed without.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """The JSON Schema of MESSAGE; alone, the list of messages.

    \b
    Examples:
      flowpilot schema                          which messages there are, and their topics
      flowpilot schema step.ready               what a worker receives
      flowpilot schema step.failed > step.failed.json
      flowpilot schema -o json                  all of them
    """
    from flowpilot_schemas.contract import public_messages

    messages = {found.name: found for found in public_messages(begin().topics)}
    if message is None:
        listed = [
            {
                "message": found.name,
                "topic": found.topic,
                "description": found.description,
                **({} if output is Format.TABLE else {"schema": found.schema()}),
            }
            for found in messages.values()
        ]
        rows(listed, ("message", "topic", "description"), output, empty="")
        return
    if message not in messages:
        close = get_close_matches(message, messages, 1)
        hint = f"did you mean {close[0]!r}?" if close else "`flowpilot schema` lists them"
        raise CommandFailed(f"there is no message {message!r}; {hint}", Exit.NOT_FOUND)
    # A schema is JSON in any case.
    record(messages[message].schema(), Format.JSON if output is Format.TABLE else output)
