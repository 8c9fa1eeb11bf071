"""What becomes of requests when the engine behind a server is found dead, while it is away, and when it is back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from chat_events import DONE, HeldEngine, failure, said, started
from servers_under_test import SECRET
from stand_in_engine import MODEL, StandInEngine, closed_port, serving

from local_vllm.errors import EngineUnavailable
from local_vllm.protocol import Converter, ConverterSettings
from local_vllm.serving.calls import Calls
from local_vllm.serving.client import EngineClient, Timeouts
from local_vllm.serving.endpoints import Endpoint, NotReady, Ready
from local_vllm.serving.http_transport import HTTPTransport
from local_vllm.serving.model_server import ModelServer, Patience
from local_vllm.serving.sessions import Sessions

pytestmark = pytest.mark.timeout(30)

ASK = {"model": "any", "input": "Hi"}
RESTARTING = NotReady("restarting", "policy_model: the engine is restarting 1/5", 5, passes=True)


@dataclass
class OneEngine:
    """A source with one engine, which the test takes away and gives back."""

    url: str
    state: Ready | NotReady = field(init=False)

    def __post_init__(self) -> None:
        self.calls = Calls(are_watched=True)
        self.changed = asyncio.Event()
        self.back(self.url)

    def back(self, url: str) -> None:
        self.endpoint = Endpoint(url, "EMPTY", MODEL)
        self.state = Ready((self.endpoint,))
        self.changed.set()

    def dies(self, state: NotReady = RESTARTING) -> None:
        self.state = state
        lost = EngineUnavailable("policy_model: the engine is lost; ask again", retry_after_s=5, code="engine_lost")
        self.calls.end(self.endpoint, lost)

    def current(self) -> Ready | NotReady:
        return self.state

    def lost(self, endpoint: Endpoint) -> Ready | NotReady:
        return self.state

    async def settled(self, within_s: float) -> Ready | NotReady:
        self.changed.clear()
        try:
            async with asyncio.timeout(within_s):
                while isinstance(self.state, NotReady) and self.state.passes:
                    await self.changed.wait()
        except TimeoutError:
            pass
        return self.state

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        return None


def server(source: OneEngine, timeouts: Timeouts = Timeouts(), **patience: Any) -> ModelServer:
    client = EngineClient(HTTPTransport(), timeouts, calls=source.calls, server="policy_model")
    sessions, converter = Sessions("policy_model", SECRET), Converter(ConverterSettings())
    return ModelServer(
        "policy_model", "my/model", source, converter, client, sessions=sessions, patience=Patience(**patience)
    )


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    text: str
    after_s: float

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.text)["error"]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[6:]) for line in self.text.split("\n") if line.startswith("data: {")]


async def ask(address: str, path: str = "responses", headers: Any = None, **more: Any) -> Answer:
    begun = time.monotonic()
    body = (ASK if path == "responses" else {"model": "any", "messages": [{"role": "user", "content": "Hi"}]}) | more
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{address}/v1/{path}", json=body, headers=headers) as answer:
            text = await answer.text()
            return Answer(answer.status, answer.headers, text, time.monotonic() - begun)


@pytest.fixture
async def held() -> AsyncIterator[HeldEngine]:
    async with started(HeldEngine()) as engine:
        yield engine  # type: ignore[misc]


@pytest.mark.parametrize("path", ["responses", "chat/completions"])
async def test_requests_in_flight_end_at_once_with_a_503_that_says_when_to_ask_again(
    one_engine: StandInEngine, path: str
) -> None:
    one_engine.delay_s = 20
    source = OneEngine(one_engine.base_url)
    async with serving(server(source)) as address:
        asking = [asyncio.create_task(ask(address, path)) for _ in range(32)]
        while len(one_engine.asked) < 32:
            await asyncio.sleep(0.01)
        died = time.monotonic()
        source.dies()
        answers = await asyncio.gather(*asking)
    assert time.monotonic() - died < 1
    assert {(each.status, each.error["code"], each.headers["retry-after"]) for each in answers} == {
        (503, "engine_lost", "5")
    }


async def test_a_stream_of_which_a_dying_engine_sends_an_error_alone_is_a_503(held: HeldEngine) -> None:
    held.say([failure("EngineCore encountered an issue", 500), DONE])
    source = OneEngine(held.base_url)
    async with serving(server(source)) as address:
        asking = asyncio.create_task(ask(address, stream=True))
        await asyncio.sleep(0.3)
        source.dies()
        answer = await asking
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "engine_lost", "5")


async def test_a_stream_ends_in_failed_and_keeps_what_was_said(held: HeldEngine) -> None:
    held.say(said("Hel")[:2])
    source = OneEngine(held.base_url)
    async with serving(server(source)) as address:
        asking = asyncio.create_task(ask(address, stream=True))
        await asyncio.sleep(0.3)
        source.dies()
        answer = await asyncio.wait_for(asking, 1)
    last = answer.events[-1]
    assert last["type"] == "response.failed"
    assert "ask again" in last["response"]["error"]["message"]
    assert last["response"]["output"][0]["content"][0]["text"] == "Hel"


async def test_a_stream_of_chat_ends_in_an_error_event(held: HeldEngine) -> None:
    held.say(said("Hel")[:2])
    source = OneEngine(held.base_url)
    async with serving(server(source)) as address:
        asking = asyncio.create_task(ask(address, "chat/completions", stream=True))
        await asyncio.sleep(0.3)
        source.dies()
        answer = await asyncio.wait_for(asking, 1)
    assert answer.events[-1]["error"]["code"] == "engine_lost"


async def test_a_connection_that_breaks_just_before_the_engine_is_found_dead_is_a_lost_engine(
    one_engine: StandInEngine,
) -> None:
    one_engine.break_off = True
    source = OneEngine(one_engine.base_url)
    async with serving(server(source)) as address:
        asking = asyncio.create_task(ask(address))
        await asyncio.sleep(0.3)
        source.dies()
        answer = await asking
    assert (answer.status, answer.error["code"]) == (503, "engine_lost")
    assert answer.after_s < 1


async def test_an_error_of_an_engine_that_dies_of_it_is_a_lost_engine(one_engine: StandInEngine) -> None:
    one_engine.status, one_engine.body = 500, b'{"error": {"message": "EngineCore died", "code": 500}}'
    source = OneEngine(one_engine.base_url)
    async with serving(server(source)) as address:
        asking = asyncio.create_task(ask(address))
        await asyncio.sleep(0.3)
        source.dies()
        answer = await asking
    assert (answer.status, answer.error["code"]) == (503, "engine_lost")


async def test_an_error_of_an_engine_that_lives_is_its_own(one_engine: StandInEngine) -> None:
    one_engine.status, one_engine.body = 500, b'{"error": {"message": "it went wrong", "code": 500}}'
    async with serving(server(OneEngine(one_engine.base_url))) as address:
        answer = await ask(address)
    assert answer.status == 500
    assert "it went wrong" in answer.error["message"]


async def test_a_new_request_waits_for_the_engine_to_come_back(one_engine: StandInEngine) -> None:
    source = OneEngine("http://127.0.0.1:1/v1")
    async with serving(server(source, wait_s=10)) as address:
        source.dies()
        asking = asyncio.create_task(ask(address))
        await asyncio.sleep(0.5)
        source.back(one_engine.base_url)
        answer = await asking
    assert answer.status == 200
    assert 0.4 < answer.after_s < 5


async def test_a_new_request_that_has_waited_long_enough_gets_a_503_with_retry_after() -> None:
    source = OneEngine("http://127.0.0.1:1/v1")
    async with serving(server(source, wait_s=0.3)) as address:
        source.dies()
        answer = await ask(address)
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "engine_restarting", "5")
    assert 0.3 <= answer.after_s < 1


async def test_a_request_that_waits_is_refused_as_soon_as_the_engine_is_given_up() -> None:
    source = OneEngine("http://127.0.0.1:1/v1")
    async with serving(server(source, wait_s=10)) as address:
        source.dies()
        asking = asyncio.create_task(ask(address))
        await asyncio.sleep(0.3)
        source.dies(NotReady("failed", "policy_model: given up", None))
        source.changed.set()
        answer = await asking
    assert (answer.status, answer.error["code"], answer.headers["x-should-retry"]) == (503, "engine_failed", "false")
    assert answer.after_s < 2


async def test_lost_requests_are_asked_again_of_the_recovered_engine_when_that_is_wanted(
    one_engine: StandInEngine, held: HeldEngine
) -> None:
    source = OneEngine(held.base_url)
    async with serving(server(source, retry_lost=True)) as address:
        asking = asyncio.create_task(ask(address))
        await asyncio.sleep(0.3)
        source.dies()
        await asyncio.sleep(0.2)
        assert not asking.done()
        source.back(one_engine.base_url)
        answer = await asking
    assert answer.status == 200
    assert len(one_engine.asked) == 1


async def test_a_lost_request_is_asked_again_once(held: HeldEngine) -> None:
    source = OneEngine(held.base_url)
    async with serving(server(source, retry_lost=True)) as address:
        asking = asyncio.create_task(ask(address))
        for _ in range(2):
            await asyncio.sleep(0.3)
            source.dies()
            source.back(held.base_url)
        answer = await asking
    assert (answer.status, answer.error["code"]) == (503, "engine_lost")


async def test_a_client_that_leaves_a_lost_call_is_just_gone(one_engine: StandInEngine) -> None:
    one_engine.delay_s = 20
    source = OneEngine(one_engine.base_url)
    async with serving(server(source)) as address:
        asking = asyncio.create_task(ask(address))
        await asyncio.sleep(0.3)
        asking.cancel()
        await asyncio.wait_for(one_engine.aborted.wait(), 2)
        source.dies()
        one_engine.delay_s = 0
        source.back(one_engine.base_url)
        assert (await ask(address)).status == 200


@pytest.mark.parametrize(
    ("timeouts", "told"),
    [
        (Timeouts(first_token_s=0.3), "first_token_timeout_s"),
        (Timeouts(total_s=0.3), "total_timeout_s"),
    ],
)
async def test_a_deadline_that_is_met_before_the_first_token_is_a_504_that_names_its_setting(
    held: HeldEngine, timeouts: Timeouts, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(server(OneEngine(held.base_url), timeouts)) as address:
        for session in ("first", "second"):
            answer = await ask(address, headers={"x-session-id": session}, stream=True)
            assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
            assert told in answer.error["message"]
    (logged,) = [record.getMessage() for record in caplog.records if told in record.getMessage()]
    assert logged.startswith("policy_model: session first: ")


async def test_a_stream_that_falls_silent_ends_in_failed_and_names_the_setting(held: HeldEngine) -> None:
    held.say(said("Hel")[:2])
    async with serving(server(OneEngine(held.base_url), Timeouts(idle_s=0.3))) as address:
        answer = await ask(address, stream=True)
    assert "idle_timeout_s" in answer.events[-1]["response"]["error"]["message"]


async def test_an_engine_where_nobody_listens_is_told_within_a_second() -> None:
    async with serving(server(OneEngine(f"http://127.0.0.1:{closed_port()}/v1"))) as address:
        answer = await ask(address)
    assert (answer.status, answer.error["code"]) == (503, "engine_unavailable")
    assert answer.after_s < 1.5
