"""Responses that an engine keeps itself are found by their ids, at the server and at the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import openai
import pytest
from servers_under_test import SECRET, model_server, over
from stand_in_engine import StandInEngine, closed_port, engine, serving

from local_vllm.config.schema import OpenAIModelSettings, VLLMModelSettings
from local_vllm.serving import native_responses
from local_vllm.serving.gateway import Gateway
from local_vllm.serving.model_server import ModelServer
from local_vllm.serving.openai_model import OpenAIModel
from local_vllm.serving.replica import Replica
from local_vllm.serving.vllm_model import VLLMModel

pytestmark = pytest.mark.timeout(30)

UNKNOWN = {"error": {"message": "no such response", "type": "invalid_request_error", "param": None, "code": None}}


def an_openai_model(*base_urls: str, name: str = "openai") -> ModelServer:
    settings = OpenAIModelSettings(base_url=list(base_urls), api_key="sk-real", model="gpt-x")
    return OpenAIModel(name, settings, Replica(SECRET))


def a_native_vllm_model(*base_urls: str, name: str = "native") -> ModelServer:
    settings = VLLMModelSettings(base_url=list(base_urls), model="gpt-x", api_key="sk-real", is_responses_native=True)
    return VLLMModel(name, settings, Replica(SECRET))


def knows_nothing(stand_in: StandInEngine) -> None:
    stand_in.status, stand_in.body = 404, json.dumps(UNKNOWN).encode()


async def ask(method: str, url: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
        return answer.status, await answer.read()


@asynccontextmanager
async def two_engines() -> AsyncIterator[tuple[StandInEngine, StandInEngine]]:
    async with engine() as one, engine() as two:
        yield one, two


@pytest.mark.parametrize("make", [an_openai_model, a_native_vllm_model])
@pytest.mark.parametrize("by_gateway", [False, True])
@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", "resp_1?include=message.output_text.logprobs&include=x"),
        ("DELETE", "resp_1"),
        ("GET", "resp_1/input_items?limit=7&order=asc&after=msg_1"),
        ("POST", "resp_1/cancel"),
    ],
)
async def test_a_request_about_a_response_goes_on_to_the_engine_that_keeps_it(
    one_engine: StandInEngine, make: Callable[..., ModelServer], by_gateway: bool, method: str, rest: str
) -> None:
    one_engine.body = b'{"id":   "resp_1"}'
    server = make(one_engine.base_url)
    async with serving(Gateway([server]) if by_gateway else server) as address:
        assert await ask(method, f"{address}/v1/responses/{rest}") == (200, one_engine.body)
    asked = one_engine.asked[0]
    path, _, query = rest.partition("?")
    assert (asked["method"], asked["path"], asked["query"]) == (method, f"/v1/responses/{path}", query)
    assert (asked["headers"]["authorization"], asked["body"]) == ("Bearer sk-real", None)


async def test_the_openai_client_gets_and_lists_and_deletes_and_cancels(one_engine: StandInEngine) -> None:
    async with serving(an_openai_model(one_engine.base_url)) as address:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0, timeout=10) as client:
            one_engine.body = b'{"id": "resp_1", "object": "response", "output": []}'
            assert (await client.responses.retrieve("resp_1")).id == "resp_1"
            assert (await client.responses.cancel("resp_1")).id == "resp_1"
            await client.responses.delete("resp_1")
            one_engine.body = b'{"object": "list", "data": [], "has_more": false}'
            assert (await client.responses.input_items.list("resp_1", limit=5)).data == []


async def test_a_response_that_is_still_made_is_streamed_as_it_comes(one_engine: StandInEngine) -> None:
    one_engine.chunks = [b"event: response.created\ndata: {}\n\n", b"event: x\ndata: {}\n\n"]
    async with serving(an_openai_model(one_engine.base_url)) as address:
        url = f"{address}/v1/responses/resp_1?stream=true&starting_after=3"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.content_type == "text/event-stream"
            assert [piece async for piece in answer.content.iter_any()] == one_engine.chunks
    assert one_engine.asked[0]["query"] == "stream=true&starting_after=3"


async def test_a_client_that_leaves_such_a_stream_ends_it(one_engine: StandInEngine) -> None:
    one_engine.chunks = [b"data: {}\n\n"] * 500
    async with serving(an_openai_model(one_engine.base_url)) as address:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{address}/v1/responses/resp_1?stream=true") as answer:
                await answer.content.readany()
        async with asyncio.timeout(2):
            await one_engine.aborted.wait()


@pytest.mark.parametrize("make", [an_openai_model, a_native_vllm_model])
async def test_of_several_engines_the_one_that_knows_it_answers(make: Callable[..., ModelServer]) -> None:
    async with two_engines() as (one, two):
        knows_nothing(one)
        async with serving(make(one.base_url, two.base_url)) as address:
            assert await ask("GET", f"{address}/v1/responses/resp_1") == (200, two.body)
        assert (len(one.asked), len(two.asked)) == (1, 1)


async def test_at_the_gateway_each_server_whose_engines_keep_responses_is_asked_after_our_own_stores() -> None:
    async with AsyncExitStack() as stack:
        one, two = await stack.enter_async_context(two_engines())
        ours = await stack.enter_async_context(engine())
        servers = [
            an_openai_model(one.base_url),
            model_server(over(ours), name="ours", model="ours"),
            a_native_vllm_model(two.base_url),
        ]
        address = await stack.enter_async_context(serving(Gateway(servers)))
        knows_nothing(one)
        assert await ask("GET", f"{address}/v1/responses/resp_1") == (200, two.body)
        assert (len(one.asked), len(two.asked), len(ours.asked)) == (1, 1, 0)

        client = await stack.enter_async_context(openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x"))
        kept = await client.responses.create(model="ours", input="hi")
        assert (await client.responses.retrieve(kept.id)).output_text == "Hello"
        assert (len(one.asked), len(two.asked)) == (1, 1)


async def test_what_nobody_knows_is_a_404_and_another_failure_says_more() -> None:
    async with two_engines() as (one, two):
        knows_nothing(one)
        knows_nothing(two)
        async with serving(Gateway([an_openai_model(one.base_url), an_openai_model(two.base_url, name="b")])) as where:
            status, body = await ask("GET", f"{where}/v1/responses/resp_1")
            assert (status, json.loads(body)) == (404, UNKNOWN)
            two.status, two.body = 400, b'{"error": {"message": "it is over", "type": "t", "code": "c"}}'
            assert await ask("POST", f"{where}/v1/responses/resp_1/cancel") == (400, two.body)


async def test_an_engine_that_is_away_does_not_hide_one_that_knows(one_engine: StandInEngine) -> None:
    away = f"http://127.0.0.1:{closed_port()}/v1"
    async with serving(an_openai_model(away, one_engine.base_url)) as address:
        assert await ask("GET", f"{address}/v1/responses/resp_1") == (200, one_engine.body)
        knows_nothing(one_engine)
        status, body = await ask("GET", f"{address}/v1/responses/resp_1")
    assert (status, json.loads(body)["error"]["code"]) == (503, "engine_unavailable")


async def test_an_engine_that_says_nothing_is_not_waited_for_longer_than_its_deadline(
    one_engine: StandInEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_responses, "ANSWER_DEADLINE_S", 0.05)
    one_engine.delay_s = 20
    async with serving(an_openai_model(one_engine.base_url)) as address:
        status, body = await ask("GET", f"{address}/v1/responses/resp_1")
    assert (status, json.loads(body)["error"]["code"]) == (504, "engine_timeout")


@pytest.mark.parametrize("strange", ["%252e%252e", "..%252fmodels", "a%252f..%252f..", "x%253Fy", "%20"])
async def test_what_is_no_id_is_asked_of_nobody(one_engine: StandInEngine, strange: str) -> None:
    async with serving(an_openai_model(one_engine.base_url)) as address:
        line = f"GET /v1/responses/{strange} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        reader, writer = await asyncio.open_connection(*address.removeprefix("http://").split(":"))
        writer.write(line.encode())
        assert b" 404 " in (await reader.read()).splitlines()[0]
        writer.close()
    assert one_engine.asked == []


async def test_one_of_our_own_cannot_be_cancelled(one_engine: StandInEngine) -> None:
    async with serving(model_server(over(one_engine))) as address:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
            kept = await client.responses.create(model="m", input="hi")
            with pytest.raises(openai.BadRequestError, match="background"):
                await client.responses.cancel(kept.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.cancel("resp_1")
