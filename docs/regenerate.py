"""The tables of settings, metrics and permissions, from the code: `python -m docs.regenerate` writes them anew."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from flowpilot.ports.metrics import METRICS
from flowpilot.settings import Settings
from flowpilot_schemas.access import ROLES, grants
from flowpilot_schemas.topics import Topics

PAGE = Path(__file__).with_name("settings.md")
METRICS_PAGE = Path(__file__).with_name("metrics.md")
DEPLOY_PAGE = Path(__file__).with_name("deploy.md")
# The rest of the page is written by hand.
TABLE = ("<!-- the table: python -m docs.regenerate -->\n", "<!-- the table's end -->\n")

PERMISSIONS = ("<!-- permissions -->\n", "<!-- /permissions -->\n")

HEAD = """\
# Settings

One set of names for every role and command: `FLOWPILOT_*` in the environment, then `.env` in the working directory,
then the default. [`.env.example`](../.env.example) is a file to start from. A value that cannot be used ends the
command with a sentence that names the setting. Give all processes of one FlowPilot the same values, but for
`FLOWPILOT_MEMBER_ID`.

This table is made from [`flowpilot/settings.py`](../flowpilot/settings.py) by `python -m docs.regenerate`.

| setting | default | meaning |
|---|---|---|
"""


def page() -> str:
    """The page's text."""
    prefix = Settings.model_config["env_prefix"]
    rows = [
        f"| `{prefix}{name.upper()}` | {_default(field)} | {_meaning(field)} |\n"
        for name, field in Settings.model_fields.items()
    ]
    return HEAD + "".join(rows)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        value = str(value).lower()
    return "–" if value is None or value in ({}, ()) else f"`{value}`"


def _meaning(field: FieldInfo) -> str:
    bounds = {kind: getattr(item, kind) for item in field.metadata for kind in ("ge", "le") if hasattr(item, kind)}
    choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    takes = ""
    if choices:
        takes = ": " + ", ".join(f"`{choice}`" for choice in choices)
    elif bounds:
        takes = f" ({bounds['ge']:,} to {bounds['le']:,})"
    return f"{field.description}{takes}".replace("|", r"\|")


def metrics_page() -> str:
    """The page as it is, with the table that the metrics make."""
    before, rest = METRICS_PAGE.read_text(encoding="utf-8").split(TABLE[0])
    _, after = rest.split(TABLE[1])
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '–'} | {metric.meaning} |\n"
        for metric in METRICS
    ]
    head = "\n| metric | kind | labels | meaning |\n|---|---|---|---|\n"
    return "".join([before, TABLE[0], head, *rows, "\n", TABLE[1], after])


def deploy_page() -> str:
    """The page as it is, with the table of permissions that each role needs."""
    before, rest = DEPLOY_PAGE.read_text(encoding="utf-8").split(PERMISSIONS[0])
    _, after = rest.split(PERMISSIONS[1])
    found = grants(Topics(), triggers=["your topics"])
    lines = []
    for role, meaning in ROLES.items():
        for number, (resource, operations) in enumerate(
            dict.fromkeys((grant.resource, grant.operations) for grant in found if grant.role == role)
        ):
            names = [
                grant.name + ("*" if grant.pattern == "prefixed" else "")
                for grant in found
                if (grant.role, grant.resource, grant.operations) == (role, resource, operations)
            ]
            shown = ", ".join(f"`{name}`" if name != "your topics" else name for name in names)
            who = f"**{role}**: {meaning}" if number == 0 else ""
            lines.append(f"| {who} | {', '.join(operations)} | {resource} | {shown} |\n")
    head = "\n| role | operations | on | names |\n|---|---|---|---|\n"
    return "".join([before, PERMISSIONS[0], head, *lines, "\n", PERMISSIONS[1], after])


def main() -> None:
    """Write the pages."""
    DEPLOY_PAGE.write_text(deploy_page(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    METRICS_PAGE.write_text(metrics_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
