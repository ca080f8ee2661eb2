"""Who may use the HTTP API, under which name, and where it listens."""

from __future__ import annotations

import asyncio
import socket

import pytest
from pydantic import SecretStr

from flowpilot.api.access import OpenToAll, is_this_machine, owner
from flowpilot.api.server import CannotListen, _listening, run_api
from flowpilot.settings import Settings, SettingsError, explain_settings, load_settings
from tests.unit.api_world import PATIENT, STARTS, Api, problem
from tests.unit.client_world import World, run


def test_tokens_guard_everything_but_health_and_are_who_asked() -> None:
    async def test(world: World) -> None:
        tokens = {"ops": SecretStr("one"), "billing": SecretStr("another")}
        async with Api(world, api_tokens=tokens) as http:
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/openapi.json")).json()["components"]["securitySchemes"]
            wrong = [
                {},
                {"Authorization": "Bearer on"},
                {"Authorization": "Bearer "},
                {"Authorization": "Basic one"},
            ]
            wrong += [{"Authorization": "one"}, {"Authorization": "Bearer one "[:-1] + "é"}]
            for headers in wrong:
                raw = [(name.encode(), text.encode()) for name, text in headers.items()]
                for method, path in (("GET", "/workflows"), ("GET", "/executions"), ("POST", STARTS)):
                    answer = await http.request(method, path, headers=raw)
                    problem(answer, 401, "unauthorized")
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert world.events() == []
            for token, name in (("one", "ops"), ("another", "billing")):
                named = {"Authorization": f"bearer {token}", "X-FlowPilot-Actor": "somebody else"}
                from_anywhere = {"Host": "flowpilot.example", "Origin": "http://app.example"}
                taken = await http.post(STARTS, json=PATIENT, headers={**named, **from_anywhere})
                assert taken.status_code == 202
                assert world.start()[0].created_by == name

    run(test)


def test_without_tokens_only_this_machine_is_served() -> None:
    """A page in a browser here could otherwise reach it, by a name of its own or across sites."""

    async def test(world: World) -> None:
        async with Api(world) as http:
            for host in ("localhost", "LOCALHOST:8080", "127.0.0.1", "127.1.2.3:80", "[::1]:8080", "app.localhost"):
                assert (await http.get("/workflows", headers={"Host": host})).status_code == 200, host
            for host in ("evil.example", "evil.example:8080", "10.0.0.1", "localhost.x.example", "[::2]", "[", ""):
                answer = await http.get("/workflows", headers={"Host": host})
                assert repr(host) in problem(answer, 403, "foreign_site")["detail"]
            for origin in ("http://evil.example", "null", "http://evil.example:127"):
                problem(await http.post(STARTS, json=PATIENT, headers={"Origin": origin}), 403, "foreign_site")
            ours = await http.post(STARTS, json=PATIENT, headers={"Origin": "http://localhost:3000"})
            assert ours.status_code == 202

    run(test)


def test_who_asked_may_be_said_where_nobody_has_to_prove_it() -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            await http.post(STARTS, json=PATIENT, headers=[(b"X-FlowPilot-Actor", "user:jörg".encode())])
            assert world.start()[0].created_by == "user:jörg"
            for wrong in ("", "x" * 201):
                refused = await http.post(STARTS, json=PATIENT, headers={"X-FlowPilot-Actor": wrong})
                problem(refused, 422, "parameter_invalid")

    run(test)


def test_the_owner_of_a_token() -> None:
    tokens = {"a": SecretStr("x" * 40), "b": SecretStr("ü")}
    assert owner("x" * 40, tokens) == "a"
    assert owner("ü", tokens) == "b"
    assert owner("x" * 39, tokens) is owner("", tokens) is owner("\ud7ff", tokens) is None


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("ops", "name=token"),
        ("=x", "name=token"),
        ("ops=", "name=token"),
        ("a=x,a=y", "twice"),
        ("a=x,b=x", "twice"),
        (f"{'n' * 201}=x", "200 characters"),
    ],
)
def test_tokens_that_cannot_be_used(given: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWPILOT_API_TOKENS", given)
    with pytest.raises(SettingsError, match=f"FLOWPILOT_API_TOKENS cannot be used: .*{problem}"):
        load_settings()


def test_tokens_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWPILOT_API_TOKENS", "ops = secret=1 , billing=secret2")
    tokens = load_settings().api_tokens
    assert {name: token.get_secret_value() for name, token in tokens.items()} == {
        "ops": "secret=1", "billing": "secret2",
    }  # fmt: skip
    for shown in (repr(load_settings()), str(explain_settings())):
        assert "secret=1" not in shown
        assert "secret2" not in shown


# Where it listens


def test_without_tokens_it_listens_on_this_machine_alone() -> None:
    assert is_this_machine("localhost")
    assert is_this_machine("::1")
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", ""):
        assert not is_this_machine(host)
        with pytest.raises(OpenToAll, match="FLOWPILOT_API_TOKENS=name=token"):
            asyncio.run(run_api(Settings(_env_file=None, api_host=host or "x")))


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"127.0.0.1:{port} .*FLOWPILOT_API_PORT"):
            asyncio.run(run_api(Settings(_env_file=None, api_port=port)))
    nowhere = Settings(_env_file=None, api_host="nowhere.invalid", api_tokens={"a": "x"})
    with pytest.raises(CannotListen, match=r"nowhere\.invalid"):
        asyncio.run(run_api(nowhere))


def test_answers_are_not_held_back() -> None:
    """asyncio switches Nagle's delay off where a socket says that it is TCP: 40 ms an answer, if not."""
    with _listening("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.proto == socket.IPPROTO_TCP
