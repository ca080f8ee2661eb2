"""What a connection may do to the API: stop in the middle, dribble, come in crowds, say two lengths."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from flowpilot.api import bodies, connections
from flowpilot.api.server import _listening, _Serving
from flowpilot.app.logging import configure_logging
from tests.planted import PASSWORD, TOKEN
from tests.unit.api_world import PATIENT, STARTS, Api
from tests.unit.client_world import World, run

HEAD = f"POST {STARTS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
JSON = "Content-Type: application/json\r\n"


@contextlib.asynccontextmanager
async def served(world: World, **settings: Any) -> AsyncIterator[int]:
    """The API's own server on a free port."""
    api = Api(world, **settings)
    async with api:
        listener = _listening("127.0.0.1", 0)
        ready = asyncio.Event()
        serving = _Serving(api.backend, listener, lambda address: ready.set())
        task = asyncio.create_task(serving.run())
        await ready.wait()
        try:
            yield listener.getsockname()[1]
        finally:
            serving._server.should_exit = True
            await task


async def exchange(port: int, request: bytes, *, closes: bool = True) -> tuple[bytes, bytes]:
    """Head and body of what is answered; `closes`: read until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.read() if closes else b""
    writer.close()
    return head, body


async def is_alive(port: int) -> None:
    async with asyncio.timeout(2):
        head, _ = await exchange(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")


def test_a_disconnect_in_mid_body_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        async with served(world, api_tokens={"ops": SecretStr(TOKEN)}) as port:
            for _ in range(3):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write((HEAD + JSON + 'Content-Length: 100\r\n\r\n{"planted-body": ').encode())
                await writer.drain()
                writer.close()
                await is_alive(port)
        assert world.events() == []

    with caplog.at_level(logging.DEBUG):
        run(test)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert TOKEN not in caplog.text
    assert "planted-body" not in caplog.text


@pytest.mark.parametrize("form", ["console", "json"])
def test_tracebacks_have_no_locals(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither of FlowPilot's own loggers nor of the libraries' in its process."""
    import structlog

    from flowpilot.settings import Settings

    before = logging.root.handlers[:], logging.root.level
    try:
        configure_logging(Settings(_env_file=None, log_format=form), "api")  # type: ignore[arg-type]
        planted = PASSWORD
        try:
            raise ValueError(f"a sentence of {len(planted)} letters")
        except ValueError as error:
            logging.getLogger("uvicorn.error").error("it raised", exc_info=error)
            structlog.get_logger("flowpilot.api").error("it raised", exc_info=True)
        printed = capsys.readouterr().err
    finally:
        logging.root.handlers[:], logging.root.level = before
        structlog.reset_defaults()
    assert printed.count("a sentence of 30 letters") >= 2
    assert "test_tracebacks_have_no_locals" in printed
    assert planted not in printed


def test_a_head_that_does_not_end_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_ARRIVES_IN", 0.2)

    async def test(world: World) -> None:
        async with served(world) as port:
            silent = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            first = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
            writer.write(first)
            await reader.readuntil(b"\r\n\r\n")  # a second request is given the same time
            writer.write(first[:20])
            async with asyncio.timeout(5):
                assert await silent[0].read() == b""
                assert b"HTTP/1.1" not in await reader.read()
            silent[1].close()
            writer.close()
            await is_alive(port)

    run(test)


def test_a_slow_body_does_not_meet_the_head_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_ARRIVES_IN", 0.2)
    monkeypatch.setattr(bodies, "ARRIVES_IN", 0.6)

    async def test(world: World) -> None:
        async with served(world) as port:
            head, body = await exchange(
                port, (HEAD + JSON + "Content-Length: 5\r\nConnection: close\r\n\r\n{").encode()
            )
            assert head.startswith(b"HTTP/1.1 408")
            assert json.loads(body)["code"] == "request_timeout"

    run(test)


def test_two_lengths_are_refused() -> None:
    async def test(world: World) -> None:
        async with served(world) as port:
            both = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
            head, body = await exchange(port, (HEAD + JSON + both).encode())
            assert head.startswith(b"HTTP/1.1 400")
            assert json.loads(body)["code"] == "two_lengths"
            await is_alive(port)
        assert world.events() == []

    run(test)


def test_beyond_the_cap_the_idle_make_room() -> None:
    async def test(world: World) -> None:
        async with served(world, api_connections=2) as port:
            idle_reader, idle = await asyncio.open_connection("127.0.0.1", port)
            idle.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await idle_reader.readuntil(b"\r\n\r\n")
            busy = []
            for _ in range(2):
                pair = await asyncio.open_connection("127.0.0.1", port)
                pair[1].write((HEAD + JSON + "Content-Length: 100\r\n\r\n{").encode())
                busy.append(pair)
            async with asyncio.timeout(5):
                await idle_reader.read()  # closed: a newer one has its place
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 503")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too_many_connections"
            writer.close()
            for _, each in busy:
                each.close()
            idle.close()

    run(test)


def test_long_answers_are_compressed_where_asked() -> None:
    async def test(world: World) -> None:
        async with served(world) as port:
            request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            _, plain = await exchange(port, (request + "\r\n").encode())
            gzipped = b"Accept-Encoding: gzip\r\n\r\n"
            head, packed = await exchange(port, request.encode() + gzipped)
            assert b"content-encoding: gzip" in head.lower()
            assert gzip.decompress(packed) == plain
            assert len(packed) < len(plain) / 3
            short, _ = await exchange(port, request.replace("openapi.json", "healthz").encode() + gzipped)
            assert b"content-encoding" not in short.lower()

    run(test)


def test_a_foreign_page_posts_nothing_even_without_a_body() -> None:
    """A browser says where a request comes from; a form or a link of another site may leave out `Origin`."""

    async def test(world: World) -> None:
        async with Api(world) as http:
            for site in ("cross-site", "same-site"):  # without `Origin`: nothing says that it is a local one
                for path in (STARTS, "/executions/00000000-0000-5000-8000-000000000000/cancel"):
                    answer = await http.post(path, headers={"Sec-Fetch-Site": site})
                    assert answer.status_code == 403, path
                    assert answer.json()["code"] == "foreign_site"
            for site in ("same-origin", "none"):
                taken = await http.post(STARTS, json=PATIENT, headers={"Sec-Fetch-Site": site})
                assert taken.status_code == 202

    run(test)


def test_readiness_without_a_token_asks_postgres_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        api = Api(world, api_tokens={"ops": SecretStr(TOKEN)})
        async with api as http:
            asked = []
            ask = api.backend.ask

            async def counted(question: Any) -> Any:
                asked.append(question)
                return await ask(question)

            monkeypatch.setattr(api.backend, "ask", counted)
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                answer = await http.get("/readyz", headers=headers)
                assert answer.json() == {"status": "ok", "kafka": "ok"}
            assert asked == []
            named = {"Authorization": f"Bearer {TOKEN}"}
            crowd = await asyncio.gather(*(http.get("/readyz", headers=named) for _ in range(20)))
            assert {each.status_code for each in crowd} == {503}  # there is no PostgreSQL here
            assert len(asked) < 20

    run(test)
