"""A conversation goes on from a stored response, over HTTP and from whichever server keeps it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai.types.responses import Response
from servers_under_test import SECRET, model_server, over
from stand_in_engine import StandInEngine, chat_answer, serving

from local_vllm.config.schema import VLLMModelSettings
from local_vllm.serving.gateway import Gateway
from local_vllm.serving.replica import Replica
from local_vllm.serving.vllm_model import VLLMModel

pytestmark = pytest.mark.timeout(30)

CALLS = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}]


def client_of(address: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="EMPTY", max_retries=0, timeout=10)


@asynccontextmanager
async def a_server(engine: StandInEngine, replica: Replica | None = None, **settings: Any) -> AsyncIterator[Any]:
    given = VLLMModelSettings(base_url=engine.base_url, model="my/model", **settings)
    async with serving(VLLMModel("policy_model", given, replica or Replica(SECRET))) as address:
        async with client_of(address) as client:
            yield client


@pytest.fixture
async def client(one_engine: StandInEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with a_server(one_engine) as client:
        yield client


def told(engine: StandInEngine) -> list[tuple[str, Any]]:
    """The messages of the last request to the engine, as (role, content)."""
    return [(message["role"], message["content"]) for message in engine.asked[-1]["body"]["messages"]]


def answers(engine: StandInEngine, **message: Any) -> None:
    answer = chat_answer("")
    answer["choices"][0]["message"] |= message
    engine.body = json.dumps(answer).encode()


async def ask(client: openai.AsyncOpenAI, given: Any, **fields: Any) -> Response:
    return await client.responses.create(model="my/model", input=given, **fields)


async def test_a_request_goes_on_from_the_response_that_it_names(
    client: openai.AsyncOpenAI, one_engine: StandInEngine
) -> None:
    first = await ask(client, "one")
    second = await ask(client, "two", previous_response_id=first.id)
    third = await ask(client, [{"role": "user", "content": "three"}], previous_response_id=second.id)
    before = [("user", "one"), ("assistant", "Hello"), ("user", "two"), ("assistant", "Hello")]
    assert told(one_engine) == [*before, ("user", "three")]
    assert (second.previous_response_id, third.previous_response_id) == (first.id, second.id)


async def test_two_requests_may_go_on_from_one_response(
    client: openai.AsyncOpenAI, one_engine: StandInEngine
) -> None:
    first = await ask(client, "one")
    for text in ("left", "right"):
        await ask(client, text, previous_response_id=first.id)
        assert told(one_engine) == [("user", "one"), ("assistant", "Hello"), ("user", text)]


async def test_instructions_are_not_carried_over(
    client: openai.AsyncOpenAI, one_engine: StandInEngine
) -> None:
    first = await ask(client, "one", instructions="rhyme")
    second = await ask(client, "two", previous_response_id=first.id)
    assert ("system", "rhyme") not in told(one_engine)
    assert second.instructions is None
    await ask(client, "three", previous_response_id=second.id, instructions="do not")
    assert told(one_engine)[0] == ("system", "do not")


async def test_the_output_of_a_call_finds_its_call_in_the_response_before(
    client: openai.AsyncOpenAI, one_engine: StandInEngine
) -> None:
    answers(one_engine, content=None, tool_calls=CALLS, reasoning="hm")
    first = await ask(client, "one", tools=TOOLS)
    output = {"type": "function_call_output", "call_id": "c1", "output": "done"}
    await ask(client, [output], tools=TOOLS, previous_response_id=first.id)
    messages = one_engine.asked[-1]["body"]["messages"]
    assert messages[1] == {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": CALLS}
    assert messages[2] == {"role": "tool", "content": "done", "tool_call_id": "c1"}
    with pytest.raises(openai.BadRequestError, match="No tool output found"):
        await ask(client, "never mind", previous_response_id=first.id)


async def test_a_streamed_response_can_be_gone_on_from(
    client: openai.AsyncOpenAI, one_engine: StandInEngine
) -> None:
    delta = {"model": "m", "choices": [{"index": 0, "delta": {"content": "Hey"}, "finish_reason": "stop"}]}
    whole = one_engine.body
    one_engine.chunks = [b"data: %s\n\n" % json.dumps(delta).encode(), b"data: [DONE]\n\n"]
    events = [event async for event in await ask(client, "one", stream=True)]
    one_engine.chunks, one_engine.body = None, whole
    await ask(client, "two", previous_response_id=events[-1].response.id)
    assert told(one_engine) == [("user", "one"), ("assistant", "Hey"), ("user", "two")]
    assert (await client.responses.retrieve(events[-1].response.id)).output_text == "Hey"


async def test_an_item_can_be_referred_to_by_its_id(
    client: openai.AsyncOpenAI, one_engine: StandInEngine
) -> None:
    first = await ask(client, "one")
    (asked,) = (await client.responses.input_items.list(first.id)).data
    items = [
        {"type": "item_reference", "id": asked.id},
        {"id": first.output[0].id},
        {"role": "user", "content": "two"},
    ]
    second = await ask(client, items)
    assert told(one_engine) == [("user", "one"), ("assistant", "Hello"), ("user", "two")]
    await client.responses.delete(first.id)
    await ask(client, "three", previous_response_id=second.id)
    assert told(one_engine)[:3] == [("user", "one"), ("assistant", "Hello"), ("user", "two")]


@pytest.mark.parametrize("id", ["msg_1", "msg_0123456789abcdef0123456789abcdef0", "item"])
async def test_a_reference_to_nothing_is_refused_where_it_stands(
    client: openai.AsyncOpenAI, id: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(client, [{"role": "user", "content": "a"}, {"type": "item_reference", "id": id}])
    assert (refused.value.param, refused.value.code) == ("input[1].id", "item_not_found")


async def test_an_unknown_response_is_refused_as_openai_does(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(client, "a", previous_response_id="resp_none")
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "previous_response_not_found")
    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError) as missing:
            await call("resp_none")
        assert missing.value.body["type"] == "invalid_request_error"
        assert "resp_none" in missing.value.body["message"]


async def test_a_conversation_whose_beginning_is_gone_is_refused_with_the_id_that_is_gone(
    client: openai.AsyncOpenAI,
) -> None:
    first = await ask(client, "one")
    second = await ask(client, "two", previous_response_id=first.id)
    await client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError, match=first.id):
        await ask(client, "three", previous_response_id=second.id)


async def test_input_items_of_a_conversation_whose_beginning_is_gone_are_not_found(client: openai.AsyncOpenAI) -> None:
    first = await ask(client, "one")
    second = await ask(client, "two", previous_response_id=first.id)
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match=first.id):
        await client.responses.input_items.list(second.id)


async def test_a_stored_response_is_what_was_answered_until_it_is_deleted(client: openai.AsyncOpenAI) -> None:
    first = await ask(client, "one", metadata={"a": "b"})
    assert await client.responses.retrieve(first.id) == first
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)


async def test_store_false_is_not_stored(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client, "one", store=False)
    assert answer.store is False
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(answer.id)


async def test_where_nothing_is_stored_the_response_and_the_error_say_so(one_engine: StandInEngine) -> None:
    async with a_server(one_engine, response_store="none") as client:
        answer = await ask(client, "one")
        assert answer.store is False
        with pytest.raises(openai.BadRequestError, match="response_store: none"):
            await ask(client, "two", previous_response_id=answer.id)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_was_too_long_is_stored_where_it_makes_a_response(
    one_engine: StandInEngine, stream: bool
) -> None:
    message = "This model's maximum context length is 10 tokens. Your request contains 99 input tokens."
    one_engine.status = 400
    one_engine.body = json.dumps({"error": {"message": message, "type": "BadRequestError", "code": 400}}).encode()
    async with a_server(one_engine, context_overflow="incomplete") as client:
        if stream:
            events = [event async for event in await ask(client, "too long", stream=True)]
            answer = events[-1].response
        else:
            answer = await ask(client, "too long")
        assert await client.responses.retrieve(answer.id) == answer
        unkept = await ask(client, "too long", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(unkept.id)
        one_engine.status = 200
        answers(one_engine, content="Hello")
        await ask(client, "shorter", previous_response_id=answer.id)
    assert told(one_engine) == [("user", "too long"), ("user", "shorter")]


async def test_conversations_are_refused_with_what_to_do_instead(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id") as refused:
        await ask(client, "one", conversation="conv_1")
    assert refused.value.param == "conversation"


async def test_an_sqlite_file_carries_a_conversation_over_a_restart(
    one_engine: StandInEngine, tmp_path: Path
) -> None:
    path = str(tmp_path / "responses.db")
    async with a_server(one_engine, response_store=path) as client:
        first = await ask(client, "one")
    async with a_server(one_engine, response_store=path) as client:
        await ask(client, "two", previous_response_id=first.id)
    assert told(one_engine) == [("user", "one"), ("assistant", "Hello"), ("user", "two")]


async def test_the_gateway_finds_a_response_whichever_server_keeps_it(one_engine: StandInEngine) -> None:
    servers = [model_server(over(one_engine), name=name, model=f"{name}/model") for name in ("a", "b")]
    async with serving(Gateway(servers)) as address, client_of(address) as client:
        for model in ("a/model", "b/model"):
            first = await client.responses.create(model=model, input="one")
            assert (await client.responses.retrieve(first.id)).id == first.id
            assert len((await client.responses.input_items.list(first.id)).data) == 1
            await client.responses.delete(first.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(first.id)


# ---- input items


async def test_input_items_are_all_that_the_response_was_made_from(client: openai.AsyncOpenAI) -> None:
    first = await ask(client, "one")
    second = await ask(
        client, [{"role": "user", "content": [{"type": "input_text", "text": "two"}]}], previous_response_id=first.id
    )
    items = (await client.responses.input_items.list(second.id, order="asc")).data
    assert [(item.type, item.role, item.content[0].text) for item in items] == [
        ("message", "user", "one"),
        ("message", "assistant", "Hello"),
        ("message", "user", "two"),
    ]
    assert len({item.id for item in items}) == 3


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_input_items_come_in_pages(client: openai.AsyncOpenAI, order: str, limit: int) -> None:
    given = [{"role": "user", "content": str(number)} for number in range(5)]
    answer = await ask(client, given)
    listed = client.responses.input_items.list(answer.id, limit=limit, order=order)
    texts = [item.content[0].text async for item in listed]
    assert texts == [str(number) for number in (range(5) if order == "asc" else range(4, -1, -1))]


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=q", "after")],
)
async def test_a_page_that_makes_no_sense_is_refused(
    client: openai.AsyncOpenAI, query: str, param: str
) -> None:
    answer = await ask(client, "one")
    url = f"{client.base_url}responses/{answer.id}/input_items?{query}"
    async with aiohttp.ClientSession() as session, session.get(url) as page:
        assert (page.status, (await page.json())["error"]["param"]) == (400, param)


# ---- what it costs


async def test_an_answer_does_not_wait_until_it_is_stored(one_engine: StandInEngine) -> None:
    class Stuck:
        """A store whose every read hangs, and whose writes are only counted."""

        def __init__(self) -> None:
            self.put_ids: list[str] = []

        def put(self, stored: Any) -> None:
            self.put_ids.append(stored.id)

        async def get(self, response_id: str) -> None:
            await asyncio.sleep(60)

        chain = delete = get

        async def close(self) -> None:
            return None

    server = model_server(over(one_engine))
    server.store = stuck = Stuck()
    async with serving(server) as address, client_of(address) as client:
        answer = await ask(client, "one")
    assert stuck.put_ids == [answer.id]
