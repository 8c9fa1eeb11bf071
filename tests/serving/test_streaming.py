"""Streamed responses over real HTTP: what clients see of an engine that talks, stops, fails or dies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from chat_events import DONE, FIRST, USED, EndlessEngine, HeldEngine, chunk, event, failure, said, started
from servers_under_test import model_server, over
from stand_in_engine import StandInEngine, mounted_at, serving

from local_vllm.protocol import ConverterSettings
from local_vllm.serving.client import Timeouts
from local_vllm.serving.gateway import Gateway

pytestmark = pytest.mark.timeout(30)

ASK = {"model": "whatever", "input": "Hi", "stream": True}
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}


def openai_client(address: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="EMPTY", max_retries=0, timeout=10)


async def ask(address: str, body: dict[str, Any] = ASK) -> tuple[int, aiohttp.typedefs.LooseHeaders, bytes]:
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{address}/v1/responses", json=body) as answer:
            return answer.status, answer.headers, await answer.read()


def events_of(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: ")]


async def error_of(address: str, body: dict[str, Any] = ASK) -> tuple[int, dict[str, Any]]:
    status, headers, answer = await ask(address, body)
    assert headers["content-type"] == "application/json"
    return status, json.loads(answer)["error"]


@pytest.fixture
async def held() -> AsyncIterator[HeldEngine]:
    async with started(HeldEngine()) as engine:
        yield engine  # type: ignore[misc]


# ---- the openai package's clients


@pytest.mark.parametrize("mount", ["/policy_model", ""])
async def test_create_with_stream_gives_events_and_the_response(
    one_engine: StandInEngine, mount: str
) -> None:
    one_engine.chunks = said("Hel", "lo")
    server = model_server(over(one_engine))
    app = mounted_at(mount, server) if mount else Gateway([server])
    model = "any" if mount else "my/model"
    async with serving(app) as address, openai_client(address + mount) as client:
        stream = await client.responses.create(model=model, input="Hi", stream=True)
        events = [each async for each in stream]
    assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == "Hello"
    assert [each.sequence_number for each in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert (events[-1].response.output_text, events[-1].response.usage.output_tokens) == ("Hello", 2)


async def test_the_stream_helper_gives_the_final_response(address: str, one_engine: StandInEngine) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    pieces = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"city":', '"Paris"}')]
    calls = [{"tool_calls": [each]} for each in (call, *pieces)]
    deltas = [{"reasoning": "hm"}, {"content": "See: "}, *calls]
    one_engine.chunks = [FIRST, *map(chunk, deltas), chunk({}, "tool_calls"), USED, DONE]
    async with openai_client(address) as client:
        async with client.responses.stream(model="any", input="Hi", tools=[WEATHER]) as stream:
            snapshots = [each.snapshot async for each in stream if each.type.endswith("arguments.delta")]
            response = await stream.get_final_response()
    assert snapshots == ['{"city":', '{"city":"Paris"}']
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.output_text == "See: "


async def test_a_streamed_response_can_be_continued(address: str, one_engine: StandInEngine) -> None:
    one_engine.chunks = said("Hello")
    async with openai_client(address) as client:
        async with client.responses.stream(model="any", input="Hi") as stream:
            first = await stream.get_final_response()
        more = {"input": "And?", "previous_response_id": first.id}
        async with client.responses.stream(model="any", **more) as stream:
            await stream.until_done()
    contents = [message["content"] for message in one_engine.asked[-1]["body"]["messages"]]
    assert contents == ["Hi", "Hello", "And?"]


# ---- while the engine talks


async def test_each_event_leaves_when_the_engine_has_said_it(held: HeldEngine) -> None:
    async with serving(model_server(over(held))) as address, openai_client(address) as client:
        held.say([FIRST])
        stream = aiter(await client.responses.create(model="any", input="Hi", stream=True))
        for word in ("one", " two", " three"):
            held.say([chunk({"content": word})])
            while (each := await anext(stream)).type != "response.output_text.delta":
                assert each.type != "response.completed"
            assert each.delta == word
        held.say([chunk({}, "stop"), DONE])
        held.hang_up()
        assert [each.type async for each in stream][-1] == "response.completed"


async def test_events_that_come_together_leave_together(held: HeldEngine) -> None:
    async with serving(model_server(over(held))) as address, aiohttp.ClientSession() as session:
        held.say([b"".join(said(*"abcdef"))])
        held.hang_up()
        async with session.post(f"{address}/v1/responses", json=ASK) as answer:
            pieces = [piece async for piece, _ in answer.content.iter_chunks()]
    assert len(events_of(b"".join(pieces))) == 6 + 8
    assert len(pieces) == 1


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
async def test_where_the_engines_bytes_are_cut_makes_no_difference(
    held: HeldEngine, size: int, end: bytes
) -> None:
    stream = b": ping\n\n".join(said("Grüße", " 😀")).replace(b"\n", end)
    held.say([stream[at : at + size] for at in range(0, len(stream), size)])
    held.hang_up()
    async with serving(model_server(over(held))) as address:
        _, _, answer = await ask(address)
    assert events_of(answer)[-1]["response"]["output"][0]["content"][0]["text"] == "Grüße 😀"


async def test_proxies_are_told_not_to_hold_a_stream_back(address: str, one_engine: StandInEngine) -> None:
    one_engine.chunks = said("Hello")
    chat = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with aiohttp.ClientSession() as session:
        for path, body in (("responses", ASK), ("chat/completions", chat)):
            async with session.post(f"{address}/v1/{path}", json=body) as answer:
                assert answer.status == 200
                assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
                assert answer.headers["cache-control"] == "no-cache"
                assert answer.headers["x-accel-buffering"] == "no"


async def test_a_client_that_reads_slowly_slows_the_engine() -> None:
    async with started(EndlessEngine(chunk({"content": "x" * 50_000}))) as engine:
        async with serving(model_server(over(engine))) as address, aiohttp.ClientSession() as session:
            answer = await session.post(f"{address}/v1/responses", json=ASK)
            await asyncio.sleep(1)
            before = engine.sent_bytes  # type: ignore[attr-defined]
            await asyncio.sleep(0.5)
            assert engine.sent_bytes == before  # type: ignore[attr-defined]
            answer.close()
            async with asyncio.timeout(5):
                await engine.aborted.wait()


async def test_a_limit_ends_the_stream_with_incomplete(address: str, one_engine: StandInEngine) -> None:
    one_engine.chunks = said("Hello", finish_reason="length")
    _, _, answer = await ask(address)
    last = events_of(answer)[-1]
    assert (last["type"], last["response"]["incomplete_details"]) == (
        "response.incomplete",
        {"reason": "max_output_tokens"},
    )


def with_token(number: int, **delta: str) -> bytes:
    listed = {"content": [{"token": "t", "logprob": -0.5}]}
    choice = {"index": 0, "delta": delta, "finish_reason": None, "token_ids": [number], "logprobs": listed}
    return event({"model": "m", "choices": [choice]})


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "from tokenize"])
async def test_token_ids_come_with_the_last_item(one_engine: StandInEngine, inline: bool) -> None:
    first = chunk({"content": ""}, **({"prompt_token_ids": [1, 2, 3]} if inline else {}))
    one_engine.chunks = [first, with_token(7, content="a"), with_token(8), chunk({}, "stop"), DONE]
    settings = ConverterSettings(return_token_id_information=True)
    one_engine.bodies_by_path["/tokenize"] = b'{"count": 3, "tokens": [1, 2, 3]}'

    class AlsoTokenizes(StandInEngine):
        async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
            self.chunks = None if scope["path"] == "/tokenize" else one_engine.chunks
            await super().__call__(scope, receive, send)

    async with started(AlsoTokenizes()) as engine:
        engine.bodies_by_path = one_engine.bodies_by_path
        async with serving(model_server(over(engine), settings=settings)) as address:
            _, _, answer = await ask(address)
    last = events_of(answer)[-1]["response"]["output"][-1]
    assert (last["prompt_token_ids"], last["generation_token_ids"]) == ([1, 2, 3], [7, 8])
    assert last["generation_log_probs"] == [-0.5, -0.5]
    paths = [asked["path"] for asked in engine.asked]
    assert paths == ["/v1/chat/completions"] + ([] if inline else ["/tokenize"])


# ---- when it fails


@pytest.mark.parametrize("words", [[], ["Hel"]])
async def test_an_engine_that_dies_in_the_middle_ends_in_failed(
    address: str, one_engine: StandInEngine, words: list[str]
) -> None:
    one_engine.chunks = said(*words)[: 1 + len(words)]
    one_engine.break_off = True
    status, _, answer = await ask(address)
    last = events_of(answer)[-1]
    assert (status, last["type"]) == (200, "response.failed")
    assert last["response"]["error"]["code"] == "server_error"
    assert one_engine.base_url in last["response"]["error"]["message"]
    assert [item["content"][0]["text"] for item in last["response"]["output"]] == words


async def test_a_stream_that_just_ends_is_a_failed_one(address: str, one_engine: StandInEngine) -> None:
    one_engine.chunks = said("Hel")[:2]
    _, _, answer = await ask(address)
    assert events_of(answer)[-1]["type"] == "response.failed"


async def test_an_answer_that_is_whole_when_the_engine_dies_is_whole(
    address: str, one_engine: StandInEngine
) -> None:
    one_engine.chunks = said("Hello")[:3]
    one_engine.break_off = True
    _, _, answer = await ask(address)
    assert events_of(answer)[-1]["type"] == "response.completed"


async def test_an_error_in_the_middle_of_the_engines_stream_ends_in_failed(
    address: str, one_engine: StandInEngine
) -> None:
    one_engine.chunks = [*said("Hel")[:2], failure("KV cache is corrupt", 500), DONE]
    _, _, answer = await ask(address)
    last = events_of(answer)[-1]
    assert (last["type"], last["response"]["error"]["message"]) == ("response.failed", "KV cache is corrupt")


async def test_an_error_beside_the_last_words_leaves_no_gap(held: HeldEngine) -> None:
    held.say([b"".join([*said("Hel")[:2], failure("no", 500)])])
    async with serving(model_server(over(held))) as address:
        _, _, answer = await ask(address)
    events = events_of(answer)
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    assert [each["delta"] for each in events if "delta" in each] == ["Hel"]
    assert events[-1]["type"] == "response.failed"


async def test_a_stream_of_something_else_ends_in_failed(address: str, one_engine: StandInEngine) -> None:
    one_engine.chunks = [FIRST, b"data: <html>\n\n"]
    _, _, answer = await ask(address)
    assert "no chat completion" in events_of(answer)[-1]["response"]["error"]["message"]


@pytest.mark.parametrize("status", [400, 503])
async def test_an_error_before_the_first_token_is_a_json_error(
    address: str, one_engine: StandInEngine, status: int
) -> None:
    one_engine.chunks = [failure("cannot do that", status), DONE]
    assert (await error_of(address))[0] == status
    one_engine.status, one_engine.chunks = status, [failure("cannot do that", status)[6:]]
    got, error = await error_of(address)
    assert (got, error["message"]) == (status, "cannot do that")


@pytest.mark.parametrize(("pieces", "breaks"), [([], True), ([], False), ([b": ping\n\n"], True)])
async def test_an_engine_that_dies_before_its_first_token_is_a_502(
    address: str, one_engine: StandInEngine, pieces: list[bytes], breaks: bool
) -> None:
    one_engine.chunks, one_engine.break_off = pieces, breaks
    status, error = await error_of(address)
    assert (status, error["code"]) == (502, "engine_connection_lost")


async def test_an_engine_that_does_not_stream_is_a_502(address: str) -> None:
    status, error = await error_of(address)
    assert (status, error["code"]) == (502, "bad_gateway")


async def test_an_engine_that_falls_silent_ends_in_failed_in_time(held: HeldEngine) -> None:
    held.say(said("Hel")[:2])
    async with serving(model_server(over(held), timeouts=Timeouts(idle_s=0.3, first_token_s=0.3))) as address:
        _, _, answer = await ask(address)
        assert events_of(answer)[-1]["type"] == "response.failed"
        status, error = await error_of(address)
    assert (status, error["code"]) == (504, "engine_timeout")


OVERFLOW = {
    "message": "This model's maximum context length is 10 tokens. Your request contains 99 input tokens.",
    "type": "BadRequestError",
    "param": "input_tokens",
    "code": 400,
}


async def test_a_prompt_that_is_too_long_is_a_json_error_or_an_incomplete_stream(
    one_engine: StandInEngine,
) -> None:
    one_engine.status, one_engine.body = 400, json.dumps({"error": OVERFLOW}).encode()
    async with serving(model_server(over(one_engine))) as address:
        status, error = await error_of(address)
        assert (status, error["code"]) == (400, "context_length_exceeded")
    settings = ConverterSettings(context_overflow="incomplete")
    async with serving(model_server(over(one_engine), settings=settings)) as address:
        status, headers, answer = await ask(address)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert [each["type"] for each in events_of(answer)] == [
        "response.created",
        "response.in_progress",
        "response.incomplete",
    ]


async def test_our_own_mistake_in_the_middle_ends_in_failed_and_is_logged(
    address: str, one_engine: StandInEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a detail")

    monkeypatch.setattr("local_vllm.protocol.fold.Fold._grow", broken)
    one_engine.chunks = said("Hello")
    _, _, answer = await ask(address)
    assert events_of(answer)[-1]["type"] == "response.failed"
    assert b"a detail" not in answer
    assert "a detail" in caplog.text


# ---- clients and connections that go away


@pytest.mark.parametrize("words", [[], said("Hel")[:2]], ids=["before the first token", "in the middle"])
async def test_a_client_that_leaves_ends_the_engines_work(held: HeldEngine, words: list[bytes]) -> None:
    held.say(words)
    async with serving(model_server(over(held))) as address, aiohttp.ClientSession() as session:
        asking = asyncio.ensure_future(session.post(f"{address}/v1/responses", json=ASK))
        await asyncio.sleep(0.3)
        if words:
            (await asking).close()
        asking.cancel()
        left = time.monotonic()
        async with asyncio.timeout(5):
            await held.aborted.wait()
    assert time.monotonic() - left < 1
