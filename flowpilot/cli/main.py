"""`flowpilot`: the command line. Heavy modules are imported inside the commands, so that `--help` is quick."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from flowpilot.cli import (
    dead_letter,
    dev,
    divergence,
    doctor,
    execution,
    init,
    operate,
    roles,
    schema,
    trigger,
    workflow,
)
from flowpilot.cli.failures import Exit, report
from flowpilot.cli.usage import is_usage, report_usage

app = typer.Typer(
    name="flowpilot",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
_debug = False


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("flowpilot"))
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run workflows on Kafka.

    \b
    Examples:
      flowpilot init shop && cd shop                      a small project
      flowpilot dev                                       all of FlowPilot on this machine, for your files
      flowpilot setup                                     on servers of your own: create topics and tables
      flowpilot engine                                    a process each, as many as you like:
      flowpilot router
      flowpilot audit
      flowpilot worker examples/patient_onboarding.py:onboarding
      flowpilot api                                       start and look over HTTP
      flowpilot execution start patient-onboarding --input '{"patient_id": "p-17"}' --wait
      flowpilot execution list --status failed
      flowpilot dead-letter list                          what nobody could process, and why
      flowpilot doctor                                    what is wrong, and what mends it
    """
    global _debug
    _debug = debug


app.command()(init.init)
app.command()(dev.dev)
app.command()(doctor.doctor)
roles.add_to(app)
app.add_typer(workflow.app)
app.add_typer(execution.app)
app.add_typer(trigger.app)
app.add_typer(dead_letter.app)
app.add_typer(divergence.app)
app.command()(schema.schema)
operate.add_to(app)


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the console script: never a traceback without `--debug`."""
    global _debug
    _debug = "--debug" in (sys.argv if arguments is None else arguments)
    try:
        code = app(arguments, prog_name="flowpilot", standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except SystemExit:
        raise
    except BrokenPipeError:  # `flowpilot … | head`
        sys.stderr.close()
        sys.exit(Exit.OK)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the user gets one sentence
        if is_usage(error):
            report_usage(error, typer.main.get_command(app), sys.argv[1:] if arguments is None else arguments)
            sys.exit(Exit.USAGE)
        if type(error).__name__ == "Abort":
            sys.exit(Exit.INTERRUPTED)
        if _debug:
            traceback.print_exception(error)
        sys.exit(report(error))
    sys.exit(code if isinstance(code, int) else Exit.OK)


if __name__ == "__main__":
    main()
