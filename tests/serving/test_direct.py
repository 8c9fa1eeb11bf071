"""The Responses API in the engine's own API server: what it answers, and what it leaves to vLLM."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import openai
import pytest
from chat_events import DONE, FIRST, USED, HeldEngine, chunk, failure, said
from direct_way import ASK, KEY, FailingApplication, ask, directly, leave
from event_grammar import check, parse
from servers_under_test import model_server, over
from stand_in_engine import MODEL, StandInEngine, chat_answer, engine, serving

from local_vllm.engine.spec import DIRECT_VARIABLE
from local_vllm.errors import ConfigError
from local_vllm.serving.direct import DirectResponses

pytestmark = pytest.mark.timeout(30)

WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}
CALLED = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
# What differs from one answer to the next, and with a store of responses.
OWN = ("id", "created_at", "completed_at", "store")


def refusal(message: str) -> bytes:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    return json.dumps({"error": error}).encode()


def with_token_ids(text: str) -> bytes:
    answer = chat_answer(text)
    logprobs = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []} for _ in range(2)]
    answer["prompt_token_ids"] = [1, 2, 3]
    answer["choices"][0] |= {"token_ids": [7, 8], "logprobs": {"content": logprobs}}
    return json.dumps(answer).encode()


def comparable(response: dict[str, Any]) -> dict[str, Any]:
    output = [{name: value for name, value in item.items() if name != "id"} for item in response["output"]]
    return {name: value for name, value in response.items() if name not in OWN} | {"output": output}


# ---- answers


async def test_an_answer_is_that_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    message = chat_answer("See:")
    message["choices"][0]["message"] |= {"reasoning": "hm", "tool_calls": [CALLED]}
    body = ASK | {"tools": [WEATHER], "instructions": "Be brief.", "temperature": 0.5}
    async with engine() as stand_in:
        stand_in.body = json.dumps(message).encode()
        async with serving(model_server(over(stand_in))) as server, directly(stand_in, monkeypatch) as here:
            _, _, expected = await ask(server, body)
            status, headers, found = await ask(here, body)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert comparable(json.loads(found)) == comparable(json.loads(expected))
    by_server, by_us = stand_in.asked
    assert by_us["body"] == by_server["body"]
    assert by_us["path"] == by_server["path"] == "/v1/chat/completions"


async def test_token_ids_come_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandInEngine()
    stand_in.body = with_token_ids("Hello")
    async with directly(stand_in, monkeypatch, return_token_id_information=True) as address:
        _, _, answer = await ask(address)
    item = json.loads(answer)["output"][-1]
    assert (item["prompt_token_ids"], item["generation_token_ids"]) == ([1, 2, 3], [7, 8])
    assert item["generation_log_probs"] == [-0.5, -0.5]
    assert stand_in.asked[0]["body"]["return_token_ids"] is True


async def test_an_engine_that_leaves_the_ids_of_the_prompt_out_is_asked_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in = StandInEngine()
    answer = json.loads(with_token_ids("Hello"))
    del answer["prompt_token_ids"]
    stand_in.body = json.dumps(answer).encode()
    stand_in.bodies_by_path["/tokenize"] = b'{"tokens": [4, 5]}'
    async with directly(stand_in, monkeypatch, return_token_id_information=True) as address:
        _, _, found = await ask(address)
    assert json.loads(found)["output"][-1]["prompt_token_ids"] == [4, 5]
    assert [asked["path"] for asked in stand_in.asked] == ["/v1/chat/completions", "/tokenize"]


async def test_a_stream_is_of_the_responses_api(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandInEngine()
    calls = [{"tool_calls": [CALLED | {"index": 0}]}]
    deltas = [{"reasoning": "hm"}, {"content": "See: "}, *calls]
    stand_in.chunks = [FIRST, *map(chunk, deltas), chunk({}, "tool_calls"), USED, DONE]
    async with directly(stand_in, monkeypatch) as address:
        status, headers, stream = await ask(address, ASK | {"stream": True, "tools": [WEATHER]})
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    response = check(parse(stream))
    assert [item["type"] for item in response["output"]] == ["reasoning", "message", "function_call"]


async def test_an_event_is_there_as_soon_as_the_engine_has_said_it(monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldEngine()
    async with directly(held, monkeypatch) as address:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=10) as client:
            held.say([FIRST, chunk({"content": "Hel"})])
            stream = await client.responses.create(model=MODEL, input="Hi", stream=True)
            async for event in stream:
                if event.type == "response.output_text.delta":
                    break
            assert event.delta == "Hel"
            held.say([chunk({"content": "lo"}), chunk({}, "stop"), USED, DONE])
            held.hang_up()
            assert [each async for each in stream][-1].response.output_text == "Hello"


async def test_more_pieces_than_are_read_ahead_arrive_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldEngine()
    words = [f"{number} " for number in range(500)]
    held.say(said(*words))
    held.hang_up()
    async with directly(held, monkeypatch) as address:
        _, _, stream = await ask(address, ASK | {"stream": True})
    assert check(parse(stream))["output"][0]["content"][0]["text"] == "".join(words)


# ---- what vLLM is asked


async def test_vllm_hears_the_clients_headers_and_the_length_of_what_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in = StandInEngine()
    async with directly(stand_in, monkeypatch, default_headers={"X-Own": "1"}) as address:
        await asyncio.gather(*(ask(address, X_data_parallel_rank=str(rank)) for rank in range(4)))
    assert sorted(asked["headers"]["x-data-parallel-rank"] for asked in stand_in.asked) == list("0123")
    for asked in stand_in.asked:
        assert asked["headers"]["authorization"] == f"Bearer {KEY}"
        assert asked["headers"]["content-type"] == "application/json"
        assert int(asked["headers"]["content-length"]) >= len(json.dumps(asked["body"], separators=(",", ":")))
        assert "accept-encoding" not in asked["headers"]


@pytest.mark.parametrize(
    ("asked", "name"),
    [(None, MODEL), (MODEL, MODEL), ("my/model", MODEL), ("policy_model", MODEL), ("an-adapter", "an-adapter")],
)
async def test_the_model_is_the_engines_and_an_adapters_name_is_kept(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, name: str
) -> None:
    stand_in = StandInEngine()
    async with directly(stand_in, monkeypatch) as address:
        await ask(address, ASK if asked is None else ASK | {"model": asked})
    assert stand_in.asked[0]["body"]["model"] == name


async def test_the_settings_of_the_server_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandInEngine()
    settings = {
        "extra_body": {"min_tokens": 3, "top_k": 5},
        "sampling_overrides": {"temperature": 0.25},
        "chat_template_kwargs": {"enable_thinking": False},
        "replace_developer_role_with_system": True,
    }
    body = {"input": [{"role": "developer", "content": "Be brief."}], "temperature": 1, "top_k": 7}
    async with directly(stand_in, monkeypatch, **settings) as address:
        await ask(address, body)
    sent = stand_in.asked[0]["body"]
    assert (sent["min_tokens"], sent["top_k"], sent["temperature"]) == (3, 7, 0.25)
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert sent["messages"][0]["role"] == "system"


# ---- what is left to vLLM


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
    ],
)
async def test_everything_else_is_vllms(monkeypatch: pytest.MonkeyPatch, method: str, path: str) -> None:
    stand_in = StandInEngine()
    async with directly(stand_in, monkeypatch) as address:
        _, _, answer = await ask(address, {"any": "thing"}, path=path, method=method)
    assert answer == stand_in.body
    (asked,) = stand_in.asked
    assert (asked["method"], asked["path"], asked["body"]) == (method, path, {"any": "thing"})


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_no_request_is_vllms(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    seen = []

    async def application(scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        seen.append(scope)

    monkeypatch.setenv(DIRECT_VARIABLE, '{"server": "policy_model", "model": "m"}')
    scope = {"type": kind} if kind == "lifespan" else {"type": kind, "path": "/v1/responses", "headers": []}
    await DirectResponses(application)(scope, None, None)  # type: ignore[arg-type]
    assert seen == [scope]


@pytest.mark.parametrize("key", ["", "another", f"{KEY} "])
@pytest.mark.parametrize("body", [b'{"input": "Hi"}', b"no json"], ids=["request", "no request"])
async def test_a_request_without_the_key_is_refused_unread(
    monkeypatch: pytest.MonkeyPatch, key: str, body: bytes
) -> None:
    stand_in = StandInEngine()
    async with directly(stand_in, monkeypatch) as address:
        status, _, answer = await ask(address, body, key=key)
    assert (status, answer) == (401, b'{"error":"Unauthorized"}')
    assert not stand_in.asked


async def test_an_answer_that_needs_no_engine_needs_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    reasoned = [{"role": "user", "content": "Hi"}, {"type": "reasoning", "id": "rs_1", "summary": []}]
    body = {"input": reasoned}
    async with directly(StandInEngine(), monkeypatch, sequential_reasoning_allowed=False) as address:
        refused, _, _ = await ask(address, body, key="another")
        answered, _, answer = await ask(address, body)
    assert (refused, answered, json.loads(answer)["status"]) == (401, 200, "incomplete")


async def test_a_middleware_of_the_users_own_sees_requests_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def around(app: Any) -> Any:
        async def middleware(scope: dict[str, Any], receive: Callable, send: Callable) -> None:
            seen.append(scope["path"])
            await app(scope, receive, send)

        return middleware

    async with directly(StandInEngine(), monkeypatch, around=around) as address:
        await ask(address)
    assert seen == ["/v1/responses"]


# ---- failures


async def test_a_wrong_request_does_not_reach_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandInEngine()
    async with directly(stand_in, monkeypatch) as address:
        status, _, answer = await ask(address, ASK | {"temperature": "hot"})
    assert (status, json.loads(answer)["error"]["param"]) == (400, "temperature")
    assert not stand_in.asked


async def test_an_earlier_response_cannot_be_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    async with directly(StandInEngine(), monkeypatch) as address:
        status, _, answer = await ask(address, ASK | {"previous_response_id": "resp_1"})
    assert status == 400
    assert "send the whole conversation" in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_vllms_refusal_is_openais_error(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    stand_in = StandInEngine()
    stand_in.status = 400
    asked = "your prompt contains at least 65 input tokens"
    stand_in.body = refusal(f"This model's maximum context length is 64 tokens. However, {asked}.")
    async with directly(stand_in, monkeypatch) as address:
        status, headers, answer = await ask(address, ASK | {"stream": stream})
    error = json.loads(answer)["error"]
    assert (status, headers["content-type"]) == (400, "application/json")
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


async def test_an_error_in_place_of_the_first_token_is_a_json_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandInEngine()
    stand_in.chunks = [failure("no such thing", 400)]
    async with directly(stand_in, monkeypatch) as address:
        status, _, answer = await ask(address, ASK | {"stream": True})
    assert (status, json.loads(answer)["error"]["message"]) == (400, "no such thing")


async def test_a_limit_that_is_too_high_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandInEngine()
    stand_in.status = 400
    stand_in.body = refusal("max_completion_tokens=99 cannot be greater than max_model_len=64.")
    async with directly(stand_in, monkeypatch) as address:
        await ask(address, ASK | {"max_output_tokens": 99})
    assert [asked["body"]["max_completion_tokens"] for asked in stand_in.asked] == [99, 64]


BEGUN = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}


@pytest.mark.parametrize("first", [(), (BEGUN,)], ids=["at once", "in the middle"])
async def test_an_application_that_breaks_down_is_a_502_without_detail(
    monkeypatch: pytest.MonkeyPatch, first: tuple[dict[str, Any], ...]
) -> None:
    async with directly(FailingApplication(*first), monkeypatch) as address:
        status, _, answer = await ask(address)
    assert (status, json.loads(answer)["error"]["code"]) == (502, "engine_connection_lost")
    assert b"of no concern" not in answer


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_of_the_server_holds(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    stand_in = StandInEngine()
    stand_in.delay_s = 20
    async with directly(stand_in, monkeypatch, total_timeout_s=0.2, first_token_timeout_s=0.2) as address:
        status, _, answer = await ask(address, ASK | {"stream": stream})
        async with asyncio.timeout(5):
            await stand_in.aborted.wait()
    assert (status, json.loads(answer)["error"]["code"]) == (504, "engine_timeout")


# ---- clients that go away


async def test_vllm_hears_that_the_client_of_a_whole_answer_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandInEngine()
    stand_in.delay_s = 20
    async with directly(stand_in, monkeypatch) as address:
        await leave(address, ASK)
        async with asyncio.timeout(5):
            await stand_in.aborted.wait()


async def test_vllm_hears_that_the_client_of_a_stream_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldEngine()
    held.say([FIRST, chunk({"content": "Hel"})])
    async with directly(held, monkeypatch) as address:
        await leave(address, ASK | {"stream": True})
        async with asyncio.timeout(5):
            await held.aborted.wait()


# ---- in vLLM's process


@pytest.mark.parametrize("value", [None, "{", '{"server": "x"}'])
def test_without_its_settings_it_says_so(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(DIRECT_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(DIRECT_VARIABLE, value)
    with pytest.raises(ConfigError, match=f"^{DIRECT_VARIABLE}: "):
        DirectResponses(StandInEngine())


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = ("ray", "vllm", "torch", "transformers", "aiohttp", "pydantic", "huggingface_hub", "prometheus_client")
    program = f"import sys, local_vllm.serving.direct\nprint(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
