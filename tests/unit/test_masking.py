"""No secret of a setting is printed, however the setting is written."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowpilot.adapters.postgres.engine import DatabaseAddressError, connect
from flowpilot.app.database import address
from flowpilot.local.dev.banner import banner
from flowpilot.masking import mask_address, mask_properties
from flowpilot.settings import Settings, explain_settings

PLANTED = "PLANTED51ab"
_AROUND = st.text("/@:?#%&=x ", max_size=4)
ADDRESSES = st.one_of(
    st.builds(lambda a, b: f"postgresql://me:{a}{PLANTED}{b}@h:5432/db", _AROUND, _AROUND),
    st.builds(
        lambda name, a: f"postgresql://me@h/db?sslmode=require&{name}={PLANTED}{a}",
        st.sampled_from(["password", "sslpassword", "PASSWORD", "passfile", "sslkey"]),
        st.text("/:?#%=x ", max_size=4),
    ),
    st.sampled_from([PLANTED, f"postgresql:/me:{PLANTED}@h/db", f"host=h password={PLANTED}"]),
)


@settings(deadline=None)
@given(written=ADDRESSES)
@example(written=f"postgresql://me:a@{PLANTED}@h:5432/db")
def test_no_address_shows_its_password(written: str) -> None:
    assert PLANTED not in mask_address(written)
    shown = banner(
        seconds=1.0, servers="s", database=written, api="a", data="d", workflows=[], error=None
    )  # fmt: skip
    assert PLANTED not in "\n".join(shown)


@settings(deadline=None)
@given(written=ADDRESSES)
@example(written=f"postgresql://me:a@{PLANTED}@h:5432/db")
def test_no_error_about_an_address_shows_its_password(written: str) -> None:
    asked = Settings(_env_file=None, database_url=written)  # type: ignore[arg-type]
    assert PLANTED not in repr(asked)
    try:
        connect(written)
        said = address(asked)
    except DatabaseAddressError as error:
        said = str(error)
    assert PLANTED not in said


def test_an_address_without_secrets_is_shown_whole() -> None:
    for written in ("postgresql://me@h:5432/db?sslmode=require", "postgres:///db", "postgresql://h/db"):
        assert mask_address(written) == written
    assert (
        mask_address("postgresql://me:x@h:5432/db?sslmode=require")
        == "postgresql://me:***@h:5432/db?sslmode=require"
    )


@pytest.mark.parametrize(
    "name",
    [
        "sasl.password",
        "sasl.oauthbearer.config",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.extensions",
        "sasl.oauthbearer.assertion.private.key.passphrase",
        "sasl.oauthbearer.assertion.private.key.pem",
        "sasl.jaas.config",
        "sasl.kerberos.kinit.cmd",
        "ssl.key.pem",
        "ssl.key.password",
        "ssl.keystore.password",
    ],
)
def test_properties_that_open_a_door_are_masked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mask_properties({name: PLANTED}) == {name: "***"}
    monkeypatch.setenv("FLOWPILOT_KAFKA_PROPERTIES", f"{name}={PLANTED}")
    assert PLANTED not in str(explain_settings())


def test_properties_that_an_operator_looks_for_are_shown() -> None:
    shown = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "me",
        "ssl.ca.location": "ca.pem",
        "ssl.key.location": "me.key",
        "ssl.keystore.location": "me.p12",
    }
    assert mask_properties(shown) == shown
