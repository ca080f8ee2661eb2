"""FLOWPILOT_STEP_SECRET: what it takes, and that it is shown nowhere."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from flowpilot.cli.main import app
from flowpilot.settings import Settings, SettingsError, explain_settings, load_settings
from flowpilot_schemas.mac import StepSecrets, mac

NEW, OLD = "correct-horse-battery", "staple-and-some-more"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("fifteen-charact", "fewer than 16 characters"),
        (f"{NEW},short-hunter2", "fewer than 16 characters"),
        (f"{NEW}, {NEW}", "twice"),
    ],
)
def test_a_secret_that_cannot_be_used_is_not_shown(
    given: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWPILOT_STEP_SECRET", given)
    with pytest.raises(SettingsError, match=f"FLOWPILOT_STEP_SECRET cannot be used: .*{problem}") as caught:
        load_settings()
    assert given.partition(",")[2] or given not in str(caught.value)
    with pytest.raises(ValidationError) as raised:
        Settings(_env_file=None)
    assert not any(part.strip() in str(raised.value) for part in given.split(","))


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWPILOT_STEP_SECRET", f" {NEW} , {OLD},")
    settings = load_settings()
    secrets = settings.step_secrets
    assert dict(secrets.header("t", b"{}"))["fp-mac"] == mac(NEW.encode(), "t", b"{}")
    assert secrets.distrust("t", b"{}", [("fp-mac", mac(OLD.encode(), "t", b"{}"))]) is None
    shown = [repr(settings), str(settings), settings.model_dump_json(), str(explain_settings()), repr(secrets)]
    for arguments in (["config", "show"], ["config", "show", "-o", "json"]):
        shown.append(CliRunner().invoke(app, arguments).output)
    assert not any(secret in text for secret in (NEW, OLD) for text in shown)
    assert "***,***" in shown[-1]


@pytest.mark.parametrize("given", [None, "", " , "])
def test_without_a_secret_nothing_is_checked(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWPILOT_STEP_SECRET", raising=False)
    if given is not None:
        monkeypatch.setenv("FLOWPILOT_STEP_SECRET", given)
    assert not load_settings().step_secrets
    assert StepSecrets().header("t", b"{}") == ()
