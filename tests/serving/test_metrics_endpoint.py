"""`GET /metrics` over real HTTP: the states of engines, and every request counted once, when its answer has ended."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from chat_events import FIRST, HeldEngine, chunk, said, started
from prometheus_client.parser import text_string_to_metric_families
from servers_under_test import SECRET, model_server, over
from stand_in_engine import MODEL, StandInEngine, closed_port, engine, serving

from local_vllm.config.client_keys import ClientKeys
from local_vllm.config.schema import OpenAIModelSettings, VLLMModelSettings
from local_vllm.engine.spec import EngineState, EngineStatus
from local_vllm.serving import metrics
from local_vllm.serving.access import Access
from local_vllm.serving.endpoints import Endpoint, NotReady, Ready
from local_vllm.serving.engine_endpoints import endpoint_state
from local_vllm.serving.gateway import Gateway
from local_vllm.serving.openai_model import OpenAIModel
from local_vllm.serving.replica import Replica
from local_vllm.serving.vllm_model import VLLMModel
from local_vllm.serving.watched_endpoints import WatchedEndpoints

pytestmark = pytest.mark.timeout(30)

ASK = {"model": "policy_model", "input": "Hi"}
CHAT = {"model": "policy_model", "messages": [{"role": "user", "content": "Hi"}]}
README = (Path(__file__).parents[2] / "README.md").read_text()


class Told:
    """A source that says what the test has told it."""

    def __init__(self, state: Ready | NotReady) -> None:
        self.state = state

    def current(self) -> Ready | NotReady:
        return self.state

    async def start(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Scraped:
    """What one scrape gave: (name, (label, its value), ...) -> value, the labels in the order of their names."""

    samples: dict[tuple[Any, ...], float]

    def of(self, name: str, **labels: str) -> dict[tuple[str, ...], float]:
        """The values with these labels, by the values of the other labels."""
        wanted = set(labels.items())
        found = {}
        for (sample, *pairs), value in self.samples.items():
            if sample == name and wanted <= set(pairs):
                found[tuple(each for label, each in pairs if label not in labels)] = value
        return found

    def state_of(self, server: str) -> set[str]:
        return {state for (state,), value in self.of(metrics.STATE, server=server).items() if value == 1}

    def counted(self, server: str) -> dict[tuple[str, str], float]:
        """Route and code -> how many."""
        found = self.of(metrics.REQUESTS, server=server, replica="")
        return {(route, code): value for (code, route), value in found.items() if route != "/metrics"}


async def scrape(address: str, key: str | None = None) -> Scraped:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession() as client, client.get(f"{address}/metrics", headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = [*text_string_to_metric_families(await answer.text())]
    assert len({family.name for family in families}) == len(families)
    samples: dict[tuple[Any, ...], float] = {}
    for sample in (sample for family in families for sample in family.samples):
        name = (sample.name, *sorted(sample.labels.items()))
        assert name not in samples
        samples[name] = sample.value
    return Scraped(samples)


async def until_counted(address: str, server: str, what: dict[tuple[str, str], float]) -> None:
    """An answer may be read by its client before it is counted."""
    async with asyncio.timeout(10):
        while (await scrape(address)).counted(server) != what:
            await asyncio.sleep(0.01)


async def post(url: str, body: dict[str, Any]) -> int:
    async with aiohttp.ClientSession() as client, client.post(url, json=body) as answer:
        await answer.read()
        return answer.status


@pytest.fixture
async def gateway(one_engine: StandInEngine) -> AsyncIterator[str]:
    """A gateway over two servers with engines and one whose engine is starting."""
    async with engine() as other:
        servers = [
            model_server(over(one_engine)),
            model_server(over(other), name="judge_model"),
            model_server(Told(NotReady("starting", "loading weights")), name="late_model"),
        ]
        async with serving(Gateway(servers)) as address:
            yield address


# ---- engines

READY = Ready((Endpoint("http://10.0.0.7:20001/v1", "k", MODEL),))


def status(state: EngineState, restarts: int = 0) -> EngineStatus:
    return EngineStatus(version=3, server="s", model="m", state=state, detail="why", restarts=restarts, max_restarts=5)


@pytest.mark.parametrize(
    ("state", "word"),
    [(READY, "ready"), *[(endpoint_state(status(each)), str(each)) for each in EngineState if each != "healthy"]],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_one_of_the_states_is_1_and_it_is_the_one_that_health_says(state: Ready | NotReady, word: str) -> None:
    async with serving(Gateway([model_server(Told(state))])) as address, aiohttp.ClientSession() as client:
        scraped = await scrape(address)
        async with client.get(f"{address}/health") as answer:
            assert (await answer.json())["status"] == word
    assert scraped.state_of("policy_model") == {word}
    assert {each for (each,) in scraped.of(metrics.STATE, server="policy_model")} == set(metrics.STATES)


async def test_the_state_is_read_when_it_is_asked_for() -> None:
    source = Told(endpoint_state(status(EngineState.STARTING)))
    async with serving(Gateway([model_server(source)])) as address:
        for now in (EngineState.STARTING, EngineState.HEALTHY, EngineState.LOST, EngineState.RESTARTING):
            source.state = endpoint_state(status(now))
            expected = "ready" if now is EngineState.HEALTHY else str(now)
            assert (await scrape(address)).state_of("policy_model") == {expected}


async def test_an_engine_that_nobody_reaches_is_unavailable() -> None:
    source = WatchedEndpoints([f"http://127.0.0.1:{closed_port()}/v1"], "EMPTY", MODEL)
    async with serving(model_server(source)) as address:
        assert (await scrape(address)).state_of("policy_model") == {"unavailable"}


@pytest.mark.parametrize("state", [EngineState.HEALTHY, EngineState.LOST, EngineState.RESTARTING, EngineState.FAILED])
async def test_restarts_are_told_of_engines_of_ours_only(state: EngineState) -> None:
    servers = [model_server(Told(endpoint_state(status(state, restarts=2)))), model_server(Told(READY), name="theirs")]
    async with serving(Gateway(servers)) as address:
        assert (await scrape(address)).of(metrics.RESTARTS) == {("policy_model",): 2}


async def test_the_gateway_tells_of_all_servers_and_a_server_of_itself(gateway: str) -> None:
    scraped = await scrape(gateway)
    assert scraped.state_of("policy_model") == scraped.state_of("judge_model") == {"ready"}
    assert scraped.state_of("late_model") == {"starting"}
    own = await scrape(f"{gateway}/late_model")
    assert {server for server, _ in own.of(metrics.STATE)} == {"late_model"}


# ---- requests


async def test_requests_are_counted_for_the_server_that_they_name(gateway: str) -> None:
    for _ in range(3):
        assert await post(f"{gateway}/v1/responses", ASK) == 200
    assert await post(f"{gateway}/v1/responses", ASK | {"model": "judge_model"}) == 200
    assert await post(f"{gateway}/v1/chat/completions", CHAT | {"model": "judge_model"}) == 200
    assert await post(f"{gateway}/judge_model/v1/responses", ASK) == 200
    await until_counted(gateway, "policy_model", {("/v1/responses", "200"): 3})
    both = {("/v1/responses", "200"): 2, ("/v1/chat/completions", "200"): 1}
    await until_counted(gateway, "judge_model", both)
    await until_counted(f"{gateway}/judge_model", "judge_model", both)


async def test_a_request_that_names_no_server_has_none(gateway: str) -> None:
    assert await post(f"{gateway}/v1/responses", ASK | {"model": "gpt-9"}) == 404
    assert await post(f"{gateway}/v1/responses", {"input": "Hi"}) == 400
    assert await post(f"{gateway}/nowhere", {}) == 404
    assert await post(f"{gateway}/health", {}) == 405
    expected = {("/v1/responses", "404"): 1, ("/v1/responses", "400"): 1, ("none", "404"): 1, ("/health", "405"): 1}
    await until_counted(gateway, "", expected)


async def test_paths_that_clients_make_up_add_no_routes(gateway: str) -> None:
    async with aiohttp.ClientSession() as client:
        for n in range(5):
            for path in (f"v1/responses/resp_{n}", f"v1/responses/resp_{n}/input_items", f"v1/made/up_{n}"):
                async with client.get(f"{gateway}/policy_model/{path}") as answer:
                    assert answer.status == 404
    routes = ("/v1/responses/{id}", "/v1/responses/{id}/input_items", "none")
    await until_counted(gateway, "policy_model", {(route, "404"): 5 for route in routes})


async def test_failures_are_counted_by_their_status_and_leave_no_duration(
    gateway: str, one_engine: StandInEngine
) -> None:
    assert await post(f"{gateway}/v1/responses", ASK | {"temperature": "hot"}) == 400
    assert await post(f"{gateway}/v1/responses", ASK | {"model": "late_model"}) == 503
    one_engine.status, one_engine.body = 500, b"out of memory"
    assert await post(f"{gateway}/v1/chat/completions", CHAT) == 500
    await until_counted(gateway, "late_model", {("/v1/responses", "503"): 1})
    await until_counted(gateway, "policy_model", {("/v1/responses", "400"): 1, ("/v1/chat/completions", "500"): 1})
    durations = (await scrape(gateway)).of(f"{metrics.DURATION}_count", server="policy_model")
    assert durations == {}


async def test_durations_go_to_the_end_of_the_answer(gateway: str, one_engine: StandInEngine) -> None:
    one_engine.delay_s = 0.3
    assert await post(f"{gateway}/v1/responses", ASK) == 200
    await until_counted(gateway, "policy_model", {("/v1/responses", "200"): 1})
    scraped = await scrape(gateway)
    labels = {"server": "policy_model", "replica": "", "route": "/v1/responses"}
    buckets = {bound: value for (bound,), value in scraped.of(f"{metrics.DURATION}_bucket", **labels).items()}
    assert (buckets["0.25"], buckets["+Inf"]) == (0, 1)
    assert [*scraped.of(f"{metrics.DURATION}_count", **labels).values()] == [1]
    (seconds,) = scraped.of(f"{metrics.DURATION}_sum", **labels).values()
    assert 0.3 <= seconds < 10


# ---- streams

PATHS = pytest.mark.parametrize(
    ("path", "asked"), [("/v1/responses", ASK), ("/v1/chat/completions", CHAT)], ids=["responses", "chat"]
)


async def streamed(
    stack: AsyncExitStack, held: HeldEngine, path: str, asked: dict[str, Any]
) -> tuple[str, aiohttp.ClientResponse]:
    """The address of a gateway, and an answer of which the first word has come."""
    address = await stack.enter_async_context(serving(Gateway([model_server(over(held))])))
    client = await stack.enter_async_context(aiohttp.ClientSession())
    held.say([FIRST, chunk({"content": "one"})])
    answer = await stack.enter_async_context(client.post(f"{address}{path}", json=asked | {"stream": True}))
    await answer.content.readany()
    return address, answer


@pytest.fixture
async def held() -> AsyncIterator[StandInEngine]:
    async with started(HeldEngine()) as stand_in:
        yield stand_in


@PATHS
async def test_a_stream_is_in_flight_until_its_end_and_counted_then(held: HeldEngine, path: str, asked: Any) -> None:
    async with AsyncExitStack() as stack:
        address, answer = await streamed(stack, held, path, asked)
        during = await scrape(address)
        assert during.of(metrics.IN_FLIGHT) == {("", "policy_model"): 1}
        assert during.counted("policy_model") == {}
        held.say(said(" two")[1:])
        held.hang_up()
        await answer.read()
        await until_counted(address, "policy_model", {(path, "200"): 1})
        assert (await scrape(address)).of(metrics.IN_FLIGHT) == {("", "policy_model"): 0}


@PATHS
async def test_a_stream_that_breaks_off_counts_as_the_failure_that_it_is(
    one_engine: StandInEngine, path: str, asked: Any
) -> None:
    one_engine.chunks, one_engine.break_off = [FIRST, chunk({"content": "one"})], True
    async with serving(Gateway([model_server(over(one_engine))])) as address:
        assert await post(f"{address}{path}", asked | {"stream": True}) == 200
        await until_counted(address, "policy_model", {(path, "502"): 1})


@PATHS
async def test_a_client_that_went_away_is_a_499(held: HeldEngine, path: str, asked: Any) -> None:
    async with AsyncExitStack() as stack:
        address, answer = await streamed(stack, held, path, asked)
        answer.close()
        await until_counted(address, "policy_model", {(path, "499"): 1})


# ---- who may ask, and of whom


async def test_it_is_behind_the_keys(one_engine: StandInEngine) -> None:
    app: Callable[..., Any] = Access(ClientKeys(("one-key",))).around(Gateway([model_server(over(one_engine))]))
    async with serving(app) as address, aiohttp.ClientSession() as client:
        for where in (address, f"{address}/policy_model"):
            for headers in ({}, {"Authorization": "Bearer another"}):
                async with client.get(f"{where}/metrics", headers=headers) as answer:
                    assert answer.status == 401
            assert (await scrape(where, "one-key")).state_of("policy_model") == {"ready"}


async def test_counts_of_several_replicas_are_told_apart(one_engine: StandInEngine) -> None:
    async with AsyncExitStack() as stack:
        replicas = [Gateway([model_server(over(one_engine), replica=name)], name) for name in ("a1", "b2")]
        addresses = [await stack.enter_async_context(serving(each)) for each in replicas]
        for address in (addresses[0], *addresses):
            assert await post(f"{address}/v1/responses", ASK) == 200
            assert await post(f"{address}/nowhere", {}) == 404
        scraped = [await scrape(address) for address in addresses]
    assert [each.of(metrics.REQUESTS, route="/v1/responses") for each in scraped] == [
        {("200", "a1", "policy_model"): 2},
        {("200", "b2", "policy_model"): 1},
    ]
    assert {key for each in scraped for key in each.of(metrics.IN_FLIGHT)} == {
        ("a1", "policy_model"),
        ("b2", "policy_model"),
    }


async def test_a_server_of_the_configuration_tells_its_replica(one_engine: StandInEngine) -> None:
    at = {"base_url": one_engine.base_url, "model": MODEL}
    replica = Replica(SECRET, name="a1")
    servers = [
        VLLMModel("policy_model", VLLMModelSettings.model_validate(at), replica),
        OpenAIModel("judge_model", OpenAIModelSettings.model_validate(at | {"api_key": "k"}), replica),
    ]
    for server in servers:
        async with serving(server) as address:
            assert await post(f"{address}/v1/responses", ASK) == 200
            scraped = await scrape(address)
        assert scraped.of(metrics.IN_FLIGHT, server=server.name) == {("a1",): 0}
        assert scraped.of(metrics.REQUESTS, server=server.name) == {("200", "a1", "/v1/responses"): 1}


async def test_a_server_at_its_mount_has_it_too(address: str) -> None:
    assert (await scrape(address)).state_of("policy_model") == {"ready"}


# ---- the README


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        (metrics.STATE, ("server", "state")),
        (metrics.RESTARTS, ("server",)),
        (metrics.IN_FLIGHT, ("server", "replica")),
        (metrics.REQUESTS, ("server", "replica", "route", "code")),
        (metrics.DURATION, ("server", "replica", "route")),
    ],
)
async def test_the_readme_tells_of_each_metric_and_its_labels(gateway: str, name: str, labels: tuple[str, ...]) -> None:
    row = re.search(rf"^\| `{name}` \|.*$", README, re.MULTILINE)
    assert row and all(f"`{label}`" in row[0] for label in labels)
