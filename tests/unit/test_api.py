"""The HTTP API on the memory broker, without PostgreSQL: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from flowpilot.api.parameters import LARGEST, _place, cursor
from flowpilot.client.connection import StartSeen
from flowpilot_schemas.codec import decode_object, parse
from flowpilot_schemas.ids import keyed_execution_id
from flowpilot_schemas.limits import MAX_KEY
from flowpilot_schemas.messages import CancelExecution, RetryExecution
from tests.unit.api_world import PATIENT, STARTS, Api, problem
from tests.unit.client_world import TOPICS, World, onboarding, run
from tests.waiting import eventually_async

JSON = {"Content-Type": "application/json"}
SOMEBODY = "c66e4a16-8185-50e7-a0b4-7ab3a77f66d5"


def test_a_start_answers_before_anything_runs() -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            answer = await http.post(STARTS, json=PATIENT, headers={"Idempotency-Key": "p-17"})
        execution = keyed_execution_id("onboarding", "p-17")
        assert (answer.status_code, answer.json()) == (202, {"execution": execution, "status": "accepted"})
        assert answer.headers["Location"] == f"/executions/{execution}"
        assert (answer.headers["Cache-Control"], answer.headers["X-Content-Type-Options"]) == (
            "no-store",
            "nosniff",
        )
        start, _ = world.start()
        assert (start.execution, start.key, start.input) == (execution, "p-17", PATIENT)
        assert (start.created_by, start.version) == ("anonymous", "1")

    run(test)


def test_a_key_is_the_same_text_as_everywhere_else() -> None:
    """Headers are bytes: clients send UTF-8, and a few Latin-1."""

    async def test(world: World) -> None:
        async with Api(world) as http:
            for sent, key in (("Größe-☃".encode(), "Größe-☃"), ("Größe".encode("latin-1"), "Größe")):
                await http.post(STARTS, json=PATIENT, headers=[(b"Idempotency-Key", sent)])
                assert world.start()[0].key == key
            for wrong in ("", "k" * (MAX_KEY + 1)):
                refused = await http.post(STARTS, json=PATIENT, headers={"Idempotency-Key": wrong})
                assert f"1 to {MAX_KEY} characters" in problem(refused, 422, "input_invalid")["detail"]

    run(test)


def test_a_wait_ends_with_the_execution_or_is_over() -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            waiting = asyncio.create_task(http.post(f"{STARTS}?wait=1m", json=PATIENT))
            await eventually_async(lambda: world.events())
            await world.reply("failed", errors={"create": {"kind": "ValueError", "message": "no"}})
            answer = await waiting
            assert answer.status_code == 200
            assert answer.json() == {
                "execution": world.start()[0].execution,
                "run": 0,
                "status": "failed",
                "output": None,
                "output_omitted": False,
                "errors": {"create": {"kind": "ValueError", "message": "no"}},
                "reason": None,
            }
            assert (await http.post(f"{STARTS}?wait=50ms", json=PATIENT)).status_code == 202
            assert (await http.post(f"{STARTS}?wait=0s", json=PATIENT)).status_code == 202
        async with Api(world, longest_wait=0.05) as http:
            assert (await http.post(f"{STARTS}?wait=24h", json=PATIENT)).status_code == 202

    run(test)


def test_a_process_that_has_to_stop_answers_who_waits() -> None:
    async def test(world: World) -> None:
        api = Api(world, longest_wait=60.0)
        async with api as http:
            waiting = asyncio.create_task(http.post(f"{STARTS}?wait=1m", json=PATIENT))
            await eventually_async(lambda: world.events())
            api.backend.draining.set()
            assert (await waiting).status_code == 202
            problem(await http.get("/readyz"), 503, "stopping")
            assert (await http.get("/healthz")).json() == {"status": "ok"}

    run(test)


def test_a_key_that_has_an_execution() -> None:
    async def test(world: World) -> None:
        execution = keyed_execution_id("onboarding", "k")
        world.audit.seen = {
            (execution, 0): StartSeen(0),
            (execution, 1): StartSeen(0, existed=True),
            (execution, 2): StartSeen(0, existed=True, conflict=True),
        }
        async with Api(world) as http:

            async def start() -> httpx.Response:
                return await http.post(f"{STARTS}?if_exists=fail", json=PATIENT, headers={"Idempotency-Key": "k"})

            assert (await start()).status_code == 202
            assert problem(await start(), 409, "execution_exists")["execution"] == execution
            assert "another input" in problem(await start(), 409, "key_conflict")["detail"]

    run(test)


# A body: (code, a word of the sentence, which is the decoder's or the schema's).
BAD_INPUTS: dict[str, tuple[bytes, str, str]] = {
    "not JSON": (b"{", "not_json", "not JSON"),
    "not UTF-8": (b'{"patient_id": "\xff"}', "not_utf8", "not UTF-8"),
    "NaN": (b'{"patient_id": NaN}', "not_json", "not JSON"),
    "65 bits": (b'{"patient_id": 18446744073709551616}', "integer_too_large", "64 bits"),
    "beyond a double": (b'{"patient_id": 1e999}', "not_json", "double"),
    "nested": (b"[" * 400 + b"]" * 400, "not_json", "recursion"),
    "a bit nested": (b"[" * 190 + b"]" * 190, "input_invalid", "deeper than 180 levels"),
    "a raw NUL": (b'{"patient_id": "\0"}', "not_json", "control character"),
    "a lone surrogate": (b'{"patient_id": "\\ud800"}', "not_json", "hex escape"),
    "another type": (b'{"patient_id": 3}', "input_invalid", "input.patient_id does not fit workflow 'onboarding'"),
    "nothing": (b"", "input_invalid", "does not fit"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_gets_the_sentence_it_gets_everywhere(name: str) -> None:
    body, code, word = BAD_INPUTS[name]

    async def test(world: World) -> None:
        async with Api(world) as http:
            refused = await http.post(STARTS, content=body, headers=JSON)
            assert word in problem(refused, 422, code)["detail"]
        assert world.events() == []

    run(test)


def test_a_nul_in_a_string_is_legal_json() -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            assert (await http.post(STARTS, content=b'{"patient_id": "\\u0000"}', headers=JSON)).status_code == 202
        assert world.start()[0].input == {"patient_id": "\0"}

    run(test)


def test_a_body_is_bounded_before_it_is_parsed_or_even_read() -> None:
    async def test(world: World) -> None:
        given = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal given
            while True:
                given += 1
                yield b"[" * 100

        async with Api(world, limit=1_000) as http:
            exact = json.dumps({"patient_id": "x" * (1_000 - len('{"patient_id": ""}'))})
            assert (await http.post(STARTS, content=exact, headers=JSON)).status_code == 202
            too_large = problem(await http.post(STARTS, content=exact + " ", headers=JSON), 413, "too_large")
            assert "1,000 bytes" in too_large["detail"]
            problem(await http.post(STARTS, content=endless(), headers=JSON), 413, "too_large")
            announced = {**JSON, "Content-Length": "9" * 400}
            problem(await http.post(STARTS, content=b"", headers=announced), 413, "too_large")
            for path in ("cancel", "retry"):
                large = b" " * (16 * 1024 + 1)
                refused = await http.post(f"/executions/{SOMEBODY}/{path}", content=large, headers=JSON)
                problem(refused, 413, "too_large")
        assert given == 11

    run(test)


def test_only_json_is_taken() -> None:
    """A page of another site can send forms and plain text without being asked, and JSON not."""

    async def test(world: World) -> None:
        async with Api(world) as http:
            for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp"):
                for content in (b"{}", b""):
                    refused = await http.post(STARTS, content=content, headers={"Content-Type": kind})
                    assert kind in problem(refused, 415, "unsupported_media_type")["detail"]
            problem(await http.post(STARTS, content=b"{}"), 415, "unsupported_media_type")
            for kind in ("application/json; charset=utf-8", "Application/JSON", "application/cloudevents+json"):
                taken = await http.post(STARTS, json=PATIENT, headers={"Content-Type": kind})
                assert taken.status_code == 202

    run(test)


# What is asked: (status, code, what the sentence names).
MISTAKES: dict[tuple[str, str], tuple[int, str, str]] = {
    ("GET", "/nothing"): (404, "not_found", "openapi.json"),
    ("GET", "/executions/"): (404, "not_found", "openapi.json"),
    ("DELETE", "/executions"): (405, "method_not_allowed", "method"),
    ("POST", "/workflows/nobody/executions"): (404, "unknown_workflow", "registered: onboarding"),
    ("POST", f"{STARTS}?version=9"): (404, "unknown_version", "'9'"),
    ("POST", f"{STARTS}?wiat=10s"): (
        422,
        "parameter_invalid",
        "'wiat': this address takes version, if_exists, wait",
    ),
    ("POST", f"{STARTS}?wait=10"): (422, "parameter_invalid", "10s"),
    ("POST", f"{STARTS}?if_exists=maybe"): (422, "parameter_invalid", "if_exists"),
    ("GET", "/workflows/nobody"): (404, "unknown_workflow", "registered: onboarding"),
    ("GET", "/workflows/onboarding?version=9"): (404, "unknown_version", "'9'"),
    ("GET", "/workflows?limit=3"): (422, "parameter_invalid", "takes none"),
    ("GET", "/executions?stauts=failed"): (422, "parameter_invalid", "'stauts'"),
    ("GET", "/executions?status=done"): (422, "parameter_invalid", "completed"),
    ("GET", "/executions?since=yesterday"): (422, "parameter_invalid", "2026-05-01T12:00:00Z"),
    ("GET", "/executions?since=2026-02-30T00:00:00Z"): (422, "parameter_invalid", "2026-05-01T12:00:00Z"),
    ("GET", "/executions?cursor=3"): (422, "parameter_invalid", "`next`"),
    ("GET", "/executions?limit=0"): (422, "parameter_invalid", "limit"),
    ("GET", "/executions?parent=p-17"): (422, "parameter_invalid", "'p-17' is not an execution id"),
    ("GET", "/executions/p-17"): (422, "parameter_invalid", "'p-17' is not an execution id"),
    ("POST", "/executions/p-17/cancel"): (422, "parameter_invalid", "'p-17' is not an execution id"),
    ("GET", f"/executions/{SOMEBODY}?run=-1"): (422, "parameter_invalid", "run"),
    ("GET", "/dead-letters/x"): (422, "parameter_invalid", "id"),
    ("GET", f"/dead-letters/{2**63}"): (422, "parameter_invalid", "id"),
    ("GET", "/executions"): (503, "postgres_unavailable", "PostgreSQL"),
    ("GET", f"/executions/{SOMEBODY}"): (503, "postgres_unavailable", "PostgreSQL"),
    ("GET", "/dead-letters"): (503, "postgres_unavailable", "PostgreSQL"),
    ("GET", "/readyz"): (503, "not_ready", "PostgreSQL"),
}


def test_each_mistake_gets_a_problem_that_names_it() -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            for (method, path), (status, code, named) in MISTAKES.items():
                body = {"json": PATIENT} if path.startswith("/workflows") and method == "POST" else {}
                answer = await http.request(method, path, **body)
                found = problem(answer, status, code)
                assert named in found["detail"], (path, found)
                assert "127.0.0.1:1" not in answer.text  # the server's own addresses are nobody's business
                assert ("Retry-After" in answer.headers) == (status == 503)
                assert ("Allow" in answer.headers) == (status == 405)
        assert world.events() == []

    run(test)


def test_a_defect_is_a_problem_too_and_tells_nothing_of_the_inside() -> None:
    async def test(world: World) -> None:
        api = Api(world)
        async with api as http:
            del api.backend.client
            found = problem(await http.post(STARTS, json=PATIENT), 500, "defect")
            assert "AttributeError" in found["detail"]
            assert "client" not in found["detail"]

    run(test)


def test_a_deleted_workflow_is_said_to_be_deleted() -> None:
    async def test(world: World) -> None:
        api = Api(world)
        async with api as http:
            await api.client.connection.definitions.delete("onboarding")
            for answer in (await http.post(STARTS, json=PATIENT), await http.get("/workflows/onboarding")):
                assert "workflow apply" in problem(answer, 404, "workflow_deleted")["detail"]
            assert (await http.get("/workflows")).json() == {"items": []}

    run(test)


def test_workflows_and_their_versions() -> None:
    async def test(world: World) -> None:
        api = Api(world)
        async with api as http:
            await api.client.register(onboarding("2", step="other"), move_pointer=True)
            [listed] = (await http.get("/workflows")).json()["items"]
            assert (listed["workflow"], listed["version"], listed["steps"]) == ("onboarding", "2", ["other"])
            shown = (await http.get("/workflows/onboarding?version=1")).json()
            assert (shown["version"], [step["name"] for step in shown["steps"]]) == ("1", ["create"])
            assert [(row["version"], row["current"]) for row in shown["versions"]] == [("1", False), ("2", True)]
            assert shown["input_schema"]["required"] == ["patient_id"]

    run(test)


def test_kafka_that_is_away_is_told_with_the_id_that_the_start_has() -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            key = {"Idempotency-Key": "k"}
            execution = keyed_execution_id("onboarding", "k")
            assert (await http.post(STARTS, json=PATIENT)).status_code == 202
            for cut in ("refuses", "hangs"):
                world.line.cut = cut  # type: ignore[assignment]
                answer = await http.post(STARTS, json=PATIENT, headers=key)
                found = problem(answer, 503, "not_started")
                assert found["execution"] == execution
                assert answer.headers["Retry-After"] == "5"
                assert problem(await http.post(STARTS, json=PATIENT), 503, "not_started")["execution"]
                problem(await http.post(f"/executions/{SOMEBODY}/cancel"), 503, "kafka_unavailable")
                problem(await http.post(f"/executions/{SOMEBODY}/retry"), 503, "kafka_unavailable")
            world.line.cut = "takes and hangs"
            found = problem(await http.post(STARTS, json=PATIENT, headers=key), 503, "start_unconfirmed")
            assert found["execution"] == execution
            assert "with the same key" in found["detail"]
            world.line.cut = None
            repeated = await http.post(STARTS, json=PATIENT, headers=key)
            assert (repeated.status_code, repeated.json()["execution"]) == (202, execution)

    run(test)


def test_kafka_that_has_no_topics_is_told() -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            world.log.delete_topic(TOPICS.events)
            assert (
                "flowpilot setup" in problem(await http.post(STARTS, json=PATIENT), 503, "kafka_refused")["detail"]
            )

    run(test)


def test_cancel_and_retry_name_who_and_why() -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            headers = {"X-FlowPilot-Actor": "user:ann"}
            answer = await http.post(f"/executions/{SOMEBODY}/cancel", json={"reason": "twice"}, headers=headers)
            assert (answer.status_code, answer.json()) == (202, {"execution": SOMEBODY, "status": "accepted"})
            sent = parse(CancelExecution, decode_object(world.events()[-1].value))
            assert (sent.execution, sent.actor, sent.reason) == (SOMEBODY, "user:ann", "twice")

            body = {"reason": "mended", "from_start": True}
            asking = asyncio.create_task(http.post(f"/executions/{SOMEBODY}/retry", json=body, headers=headers))
            await eventually_async(lambda: len(world.events()) == 2)
            asked = parse(RetryExecution, decode_object(world.events()[-1].value))
            assert (asked.execution, asked.actor, asked.reason, asked.from_start) == (
                SOMEBODY, "user:ann", "mended", True,
            )  # fmt: skip
            await world.answer_retry(f"{SOMEBODY}.1")
            answer = await asking
            assert (answer.status_code, answer.headers["Location"]) == (202, f"/executions/{SOMEBODY}.1")
            assert answer.json() == {"execution": f"{SOMEBODY}.1", "status": "accepted", "retry_of": SOMEBODY}

            for refused, status in (("in_progress", 409), ("results_gone", 409), ("unknown_execution", 404)):
                asking = asyncio.create_task(http.post(f"/executions/{SOMEBODY}/retry"))
                count = len(world.events())
                await eventually_async(lambda count=count: len(world.events()) > count)  # type: ignore[misc]
                await world.answer_retry(None, refused)
                assert problem(await asking, status, refused)["execution"] == SOMEBODY

    run(test)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"[]", "not an object"),
        (b'{"reason": 3}', "reason"),
        (b'{"raeson": "x"}', "raeson"),
        (b'{"reason": "%s"}' % (b"x" * 1_001), "1000"),
        (b'{"from_start": "yes"}', "from_start"),
        (b'{"version": "2"}', "from_start"),
    ],
)
def test_the_body_of_a_retry_is_checked(body: bytes, named: str) -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            answer = await http.post(f"/executions/{SOMEBODY}/retry", content=body, headers=JSON)
            assert answer.status_code == 422
            assert named in answer.json()["detail"]
        assert world.events() == []

    run(test)


def test_cursors_are_places() -> None:
    for place in (0, 1, 2**40 + 3, LARGEST):
        text = cursor(place)
        assert text is not None
        assert _place(text) == place
    assert cursor(None) is None
    assert _place("__________8") == LARGEST


def test_the_description_is_whole() -> None:
    async def test(world: World) -> None:
        async with Api(world) as http:
            described = (await http.get("/openapi.json")).json()
        text = json.dumps(described)
        names = set(described["components"]["schemas"])
        assert {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]} <= names
        assert "HTTPValidationError" not in names
        for path, methods in described["paths"].items():
            for method, operation in methods.items():
                assert operation["summary"], (method, path)
                assert "422" not in operation["responses"] or "problem+json" in str(operation["responses"]["422"])
        assert "patient_id" in str(described["paths"]["/workflows/{name}/executions"]["post"]["requestBody"])

    run(test)
