"""Engines that somebody else runs: which of them are there, what they tell of themselves, and whose sessions move."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
import uvicorn
from servers_under_test import model_server
from stand_in_engine import MODEL, StandInEngine, closed_port, serving

from local_vllm.runs.readiness import until_all_answer
from local_vllm.serving import engine_watch
from local_vllm.serving.endpoints import NotReady, Ready
from local_vllm.serving.engine_watch import waiting_by_rank
from local_vllm.serving.gateway import Gateway
from local_vllm.serving.watched_endpoints import WatchedEndpoints

pytestmark = pytest.mark.timeout(30)

CHUNK = {"model": "m", "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
STREAM = b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(CHUNK).encode()
NAMES = [f"rollout {n}" for n in range(12)]


class Told(StandInEngine):
    """An engine with `/metrics`: `waiting` at each of its ranks, or no such page where it is None."""

    def __init__(self, text: str = "Hello") -> None:
        super().__init__(text)
        self.waiting: list[int] | None = [0]
        self.metrics_status = 200

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["path"] != "/metrics":
            return await super().__call__(scope, receive, send)
        status = 404 if self.waiting is None else self.metrics_status
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": metrics(*self.waiting or ()).encode()})


def metrics(*waiting: int) -> str:
    lines = ["# TYPE vllm:num_requests_waiting gauge", 'vllm:num_requests_waiting_by_reason{engine="7"} 3.0']
    lines += [f'vllm:num_requests_waiting{{engine="{n}",model_name="m"}} {w}.0' for n, w in enumerate(waiting)]
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def listening(app: Any, port: int) -> AsyncIterator[str]:
    """The application on this very port, so that it can leave it and come back."""
    config = uvicorn.Config(app, port=port, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        await running


@asynccontextmanager
async def watched(*urls: str) -> AsyncIterator[WatchedEndpoints]:
    source = WatchedEndpoints(urls, "EMPTY", MODEL, look_every_s=0.05)
    await source.start()
    try:
        yield source
    finally:
        await source.close()


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not fact():
            await asyncio.sleep(0.01)


def there(source: WatchedEndpoints) -> list[str]:
    state = source.current()
    return [endpoint.base_url for endpoint in state.endpoints] if isinstance(state, Ready) else []


async def say(client: aiohttp.ClientSession, address: str, name: str | None = None) -> str:
    headers = {"x-session-id": name} if name else {}
    async with client.post(f"{address}/v1/responses", json={"model": "m", "input": "Hi"}, headers=headers) as answer:
        body = await answer.json()
        assert answer.status == 200, body
        return body["output"][-1]["content"][0]["text"]


async def test_an_engine_tells_its_ranks_and_the_queue_of_each() -> None:
    app = Told()
    app.waiting = [3, 40]
    async with listening(app, closed_port()) as url, watched(url) as source:
        state = source.current()
        assert isinstance(state, Ready)
        assert (state.endpoints[0].ranks, state.waiting) == (2, ((3, 40),))
        app.waiting = [3, 0]
        await until(lambda: source.current().waiting == ((3, 0),))
        assert source.current().endpoints is state.endpoints


@pytest.mark.parametrize("status", [401, 404, 500])
async def test_an_engine_without_metrics_is_there_with_one_rank(status: int) -> None:
    app = Told()
    app.waiting, app.metrics_status = (None, 404) if status == 404 else ([], status)
    async with listening(app, closed_port()) as url, watched(url) as source:
        await asyncio.sleep(0.2)
        state = source.current()
        assert isinstance(state, Ready)
        assert (state.endpoints[0].ranks, state.waiting) == (1, ((),))


async def test_an_engine_that_is_too_busy_to_tell_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def busy(scope: Any, receive: Callable, send: Callable) -> None:
        asked.append(scope["path"])
        await asyncio.sleep(60)

    monkeypatch.setattr(engine_watch, "LOOK_DEADLINE_S", 0.1)
    async with listening(busy, closed_port()) as url, watched(url) as source:
        await until(lambda: len(asked) > 2)
        assert there(source) == [url]


async def test_a_proxy_with_nobody_behind_it_is_no_engine() -> None:
    app = Told()
    app.metrics_status = 502
    async with listening(app, closed_port()) as url, watched(url) as source:
        state = source.current()
        assert isinstance(state, NotReady)
        assert url in state.message and "502" in state.message


async def test_a_server_without_any_engine_says_503_and_lists_no_model_until_one_is_there() -> None:
    port = closed_port()
    source = WatchedEndpoints([f"http://127.0.0.1:{port}/v1"], "EMPTY", MODEL, look_every_s=0.05)
    async with serving(model_server(source)) as address, aiohttp.ClientSession() as client:
        async with client.post(f"{address}/v1/responses", json={"model": "m", "input": "Hi"}) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"], "retry-after" in answer.headers) == (503, "engine_unavailable", True)
            assert f"127.0.0.1:{port}" in error["message"]
        async with client.get(f"{address}/v1/models") as answer:
            assert (await answer.json())["data"] == []
        async with listening(Told("Here I am"), port):
            await until(lambda: there(source))
            assert await say(client, address) == "Here I am"
            async with client.get(f"{address}/v1/models") as answer:
                assert len((await answer.json())["data"]) == 1


async def test_a_run_does_not_wait_for_engines_of_somebody_elses_but_names_those_that_it_cannot_reach() -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    async with listening(Told(), closed_port()) as there_url:
        servers = [
            model_server(WatchedEndpoints([where], "EMPTY", MODEL), name=name)
            for name, where in (("policy_model", there_url), ("judge_model", url))
        ]
        async with serving(Gateway(servers)) as address:
            (message,) = await until_all_answer(address)
    assert message == f"judge_model: No connection to the engine at {url}: Connection refused."


@asynccontextmanager
async def two_engines(
    stack: AsyncExitStack,
) -> AsyncIterator[tuple[WatchedEndpoints, str, int, AsyncExitStack, Told]]:
    """A server over two engines, the port of the second, what ends the second when it is closed, and the first."""
    ports = closed_port(), closed_port()
    async with AsyncExitStack() as second:
        one = Told("one")
        await stack.enter_async_context(listening(one, ports[0]))
        await second.enter_async_context(listening(Told("two"), ports[1]))
        urls = [f"http://127.0.0.1:{port}/v1" for port in ports]
        source = WatchedEndpoints(urls, "EMPTY", MODEL, look_every_s=60)
        address = await stack.enter_async_context(serving(model_server(source)))
        yield source, address, ports[1], second, one


async def test_when_an_engine_goes_its_sessions_move_without_an_error_and_the_rest_stay() -> None:
    async with AsyncExitStack() as stack, two_engines(stack) as (source, address, port, second, _):
        client = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        before = {name: await say(client, address, name) for name in NAMES}
        assert set(before.values()) == {"one", "two"}
        await second.aclose()
        assert {await say(client, address, name) for name in NAMES} == {"one"}
        assert len(there(source)) == 1
        async with listening(Told("two"), port):
            await until(lambda: len(there(source)) == 2)
            assert {name: await say(client, address, name) for name in NAMES} == before, "names come back"


async def test_a_session_known_by_cookie_stays_where_it_has_moved_to() -> None:
    async with AsyncExitStack() as stack, two_engines(stack) as (source, address, port, second, _):
        clients = [
            await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)))
            for _ in range(2)
        ]
        assert [await say(client, address) for client in clients] == ["one", "two"]
        await second.aclose()
        assert [await say(client, address) for client in clients] == ["one", "one"]
        async with listening(Told("two"), port):
            await until(lambda: len(there(source)) == 2)
            assert [await say(client, address) for client in clients] == ["one", "one"]


@pytest.mark.parametrize("path", ["responses", "chat/completions"])
async def test_a_stream_begins_at_another_engine_when_the_next_in_turn_is_gone(path: str) -> None:
    async with AsyncExitStack() as stack, two_engines(stack) as (_, address, _, second, one):
        await second.aclose()
        one.chunks = [STREAM]
        asked: dict[str, Any] = {"model": "m", "stream": True}
        asked |= {"input": "Hi"} if path == "responses" else {"messages": []}
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
            for _ in range(2):
                async with client.post(f"{address}/v1/{path}", json=asked) as answer:
                    assert answer.status == 200, await answer.text()


async def test_new_sessions_leave_out_an_engine_with_a_long_queue() -> None:
    apps = [Told("one"), Told("two")]
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(listening(app, closed_port())) for app in apps]
        source = WatchedEndpoints(urls, "EMPTY", MODEL, look_every_s=0.05)
        address = await stack.enter_async_context(serving(model_server(source)))
        client = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        assert [await say(client, address) for _ in range(4)] == ["one", "two"] * 2
        apps[0].waiting = [100]
        await until(lambda: source.current().waiting == ((100,), (0,)))
        assert [await say(client, address) for _ in range(4)] == ["two"] * 4
        apps[0].waiting = [0]
        await until(lambda: source.current().waiting == ((0,), (0,)))
        assert sorted([await say(client, address) for _ in range(4)]) == ["one", "one", "two", "two"]


@pytest.mark.parametrize(("text", "waiting"), [
    (metrics(), ()),
    (metrics(0), (0,)),
    (metrics(5, 0, 7), (5, 0, 7)),
    ('vllm:num_requests_waiting{model_name="m"} 4.0\n', (4,)),
    ('vllm:num_requests_waiting{engine="3",model_name="m"} 4.0\n', (4,)),
    (json.dumps({"not": "metrics"}), ()),
], ids=["nothing", "one", "three ranks", "no number", "a server of its own", "JSON"])  # fmt: skip
def test_the_queue_of_each_rank_is_read_from_vllms_metrics(text: str, waiting: tuple[int, ...]) -> None:
    assert waiting_by_rank(text) == waiting
