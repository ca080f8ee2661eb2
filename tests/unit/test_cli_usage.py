"""What is written wrongly: each command says how it is used, where its help is, and what is wrong."""

from __future__ import annotations

import re

import pytest

from flowpilot.cli.failures import Exit
from flowpilot.cli.main import main
from tests.unit.test_cli import GROUPS, HELPS

# Ways of a sentence that is meant for a programmer, or begins as only Typer's do.
STRANGE = re.compile(r"Value error|Input should|argument\(s\)|^Error", re.MULTILINE)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """The command of the usage line, and the sentence."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (Exit.USAGE, "")
    usage, hint, gap, sentence = told.err.splitlines()
    command = usage.removeprefix("Usage: ").partition(" [")[0]
    assert (hint, gap) == (f"Try '{command} --help' for help.", "")
    assert not STRANGE.search(told.err)
    assert sentence.startswith("error: ")
    return command, sentence.removeprefix("error: ")


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_an_option_that_no_command_has(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    whole = " ".join(("flowpilot", *command))
    assert refused(capsys, *command, "--qqq") == (whole, "no such option: --qqq")
    _, sentence = refused(capsys, *command, "--hepl")
    assert sentence == "no such option: --hepl. Did you mean '--help'?"


@pytest.mark.parametrize("group", [(), *((group,) for group in GROUPS)], ids=" ".join)
def test_a_command_that_no_group_has(group: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    whole = " ".join(("flowpilot", *group))
    assert refused(capsys, *group, "frobnicate") == (whole, "no such command 'frobnicate'")


@pytest.mark.parametrize(
    ("arguments", "command", "sentence"),
    [
        ("execution strat", "execution", "no such command 'strat'. Did you mean 'start'?"),
        ("executions list", "", "no such command 'executions'. Did you mean 'execution'?"),
        ("start", "", "no such command 'start'. Did you mean 'flowpilot execution start'?"),
        ("execution doctor", "execution", "no such command 'doctor'. Did you mean 'flowpilot doctor'?"),
        ("execution start", "execution start", "missing argument 'WORKFLOW'"),
        ("execution cancel e", "execution cancel", "missing option '--reason' / '-r'"),
        ("execution list --key", "execution list", "option '--key' requires an argument"),
        ("--debug execution list -s", "execution list", "option '-s' requires an argument"),
        ("engine --help=3", "engine", "option '--help' does not take a value"),
        ("execution list a b", "execution list", "got unexpected extra arguments (a b)"),
        (
            "execution list -o xml",
            "execution list",
            "invalid value for '--output' / '-o': 'xml' is not one of 'table', 'json', 'jsonl'",
        ),
        (
            "execution list --limit 0",
            "execution list",
            "invalid value for '--limit' / '-n': it should be greater than or equal to 1",
        ),
    ],
)
def test_each_way_to_write_wrongly(
    arguments: str, command: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *arguments.split()) == (f"flowpilot {command}".rstrip(), sentence)


def test_what_was_written_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "a\x1b[2J")[1] == r"no such command 'a\x1b[2J'"


@pytest.mark.parametrize("group", [(), *((group,) for group in GROUPS)], ids=" ".join)
def test_a_group_alone_shows_its_help(group: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*group])
    told = capsys.readouterr()
    assert ended.value.code == Exit.USAGE
    assert "Commands:\n" in told.out + told.err
    assert "error: " not in (told.out + told.err).lower()
