"""What the API tells its meter: by template, never by what a caller sent."""

from __future__ import annotations

import asyncio

from flowpilot.adapters.prometheus import PrometheusMeter
from flowpilot.api.application import create_app
from flowpilot.ports import metrics
from flowpilot.ports.meter import Metric
from flowpilot.ports.metrics import METRICS
from tests.unit.api_world import PATIENT, STARTS, Api
from tests.unit.client_world import World, run
from tests.waiting import eventually_async

START = "/workflows/{name}/executions"
SOMEBODY = "c66e4a16-8185-50e7-a0b4-7ab3a77f66d5"


class Seen:
    """A meter of the API's metrics, and what a scrape of it shows."""

    def __init__(self) -> None:
        self.meter = PrometheusMeter(metric for metric in METRICS if metric.role == "api")

    def value(self, metric: Metric, *labels: str, part: str = "") -> float | None:
        named = dict(zip(metric.labels, labels, strict=True))
        return self.meter.registry.get_sample_value(metric.name + part, named)

    def requests(self) -> dict[tuple[str, ...], float]:
        """How many, by method, route and class."""
        [family] = [each for each in self.meter.registry.collect() if each.name == "flowpilot_api_requests"]
        return {
            (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
            for sample in family.samples
            if sample.name.endswith("_total")
        }


def test_requests_are_counted_by_template_and_class() -> None:
    async def test(world: World) -> None:
        seen = Seen()
        api = Api(world, meter=seen.meter)
        async with api as http:
            for name in ("onboarding", "no-such", "nor-this"):
                await http.post(f"/workflows/{name}/executions", json=PATIENT)
            await http.post(STARTS, json={"patient_id": 1})
            await http.get(f"/executions/{SOMEBODY}")
            await http.get("/executions/not-an-id")
            await http.delete("/executions")
            await http.request("BREW", "/executions")
            for address in ("/metrics", "/wp-login.php", "/executions/a/b/c"):
                assert (await http.get(address)).status_code == 404
            del api.backend.client
            await http.post(STARTS, json=PATIENT)
        assert seen.requests() == {
            ("POST", START, "2xx"): 1,
            ("POST", START, "4xx"): 3,
            ("POST", START, "5xx"): 1,
            ("GET", "/executions/{execution}", "5xx"): 1,  # PostgreSQL does not answer here
            ("GET", "/executions/{execution}", "4xx"): 1,
            ("DELETE", "/executions", "4xx"): 1,
            ("other", "/executions", "4xx"): 1,
            ("GET", "none", "4xx"): 3,
        }
        assert seen.value(metrics.API_REQUEST, "POST", START, part="_count") == 5
        assert 0 < (seen.value(metrics.API_REQUEST, "POST", START, part="_sum") or 0) < 60

    run(test)


def test_who_waits_is_seen_waiting_and_is_no_slow_request() -> None:
    async def test(world: World) -> None:
        seen = Seen()
        async with Api(world, meter=seen.meter) as http:
            assert seen.value(metrics.API_WAITS) == 0
            waiting = asyncio.create_task(http.post(f"{STARTS}?wait=1m", json=PATIENT))
            await eventually_async(lambda: seen.value(metrics.API_WAITS) == 1)
            await world.reply("completed")
            assert (await waiting).status_code == 200
            assert seen.value(metrics.API_WAITS) == 0
            assert seen.requests() == {("POST", START, "2xx"): 1}
            assert seen.value(metrics.API_REQUEST, "POST", START, part="_count") is None

    run(test)


def test_starts_that_kafka_does_not_acknowledge_are_counted() -> None:
    async def test(world: World) -> None:
        seen = Seen()
        async with Api(world, meter=seen.meter) as http:
            await http.post(STARTS, json=PATIENT)
            world.line.cut = "refuses"
            await http.post(STARTS, json=PATIENT)
            world.line.cut = "takes and hangs"
            for _ in range(2):
                assert (await http.post(STARTS, json=PATIENT)).json()["code"] == "start_unconfirmed"
            world.line.cut = None
        assert seen.value(metrics.API_UNCONFIRMED, "not_started") == 1
        assert seen.value(metrics.API_UNCONFIRMED, "start_unconfirmed") == 2

    run(test)


def test_without_a_meter_nothing_stands_in_the_way() -> None:
    async def test(world: World) -> None:
        for meter, there in ((Seen().meter, True), (None, False)):
            api = Api(world, meter=meter) if meter is not None else Api(world)
            names = [middleware.cls.__name__ for middleware in create_app(api.backend).user_middleware]
            assert ("Observing" in names) is there

    run(test)
