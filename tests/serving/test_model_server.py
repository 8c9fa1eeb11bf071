"""Every route of a model server, and every way in which it fails, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import aiohttp
import openai
import pytest
from servers_under_test import model_server, over
from stand_in_engine import MODEL, StandInEngine, chat_answer, closed_port, serving

from local_vllm.protocol import ConverterSettings
from local_vllm.serving.client import Timeouts
from local_vllm.serving.endpoints import FixedEndpoints, NotReady, Ready
from local_vllm.serving.requests import Limits

pytestmark = pytest.mark.timeout(30)

ASK = {"model": "whatever", "input": "Hi"}
CHAT = {"model": "whatever", "messages": [{"role": "user", "content": "Hi"}]}


class Switch:
    """An endpoint source whose state the test sets."""

    def __init__(self, state: Ready | NotReady) -> None:
        self.state = state
        self.running = False

    def current(self) -> Ready | NotReady:
        return self.state

    async def start(self) -> None:
        self.running = True

    async def close(self) -> None:
        self.running = False


def openai_client(address: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="EMPTY", max_retries=0, timeout=10)


async def ask(method: str, url: str, **options: object) -> tuple[int, dict[str, str], dict]:
    async with aiohttp.ClientSession() as session, session.request(method, url, **options) as answer:
        return answer.status, dict(answer.headers), await answer.json()


async def test_openai_client_gets_the_text_of_the_engine(address: str) -> None:
    async with openai_client(address) as client:
        response = await client.responses.create(model="any name", input="Hi")
    assert response.output_text == "Hello"
    assert response.status == "completed"


async def test_the_engine_is_asked_for_its_own_model(address: str, one_engine: StandInEngine) -> None:
    await ask("POST", f"{address}/v1/responses", json=ASK)
    assert one_engine.asked[0]["path"] == "/v1/chat/completions"
    assert one_engine.asked[0]["body"]["model"] == MODEL
    assert one_engine.asked[0]["headers"]["authorization"] == "Bearer EMPTY"


async def test_routes_answer_without_the_mount_in_the_path_too(one_engine: StandInEngine) -> None:
    async with serving(model_server(over(one_engine))) as address:
        status, _, answer = await ask("POST", f"{address}/v1/responses", json=ASK)
    assert (status, answer["object"]) == (200, "response")


async def test_a_whole_chat_completion_passes_byte_for_byte(address: str, one_engine: StandInEngine) -> None:
    one_engine.body = one_engine.body.replace(b'"id": ', b'"id"  :   ')
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{address}/v1/chat/completions", json=CHAT) as answer:
            assert (answer.status, await answer.read()) == (200, one_engine.body)


async def test_a_streamed_chat_completion_passes_piece_by_piece(
    address: str, one_engine: StandInEngine
) -> None:
    one_engine.chunks = [b'data: {"n": %d}\n\n' % n for n in range(5)] + [b"data: [DONE]\n\n"]
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{address}/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
            pieces = [piece async for piece in answer.content.iter_any()]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert b"".join(pieces) == b"".join(one_engine.chunks)
    assert len(pieces) > 1


async def test_a_stream_that_breaks_off_ends_with_an_error_event(
    address: str, one_engine: StandInEngine
) -> None:
    one_engine.chunks = [b'data: {"n": 1}\n\n']
    one_engine.break_off = True
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{address}/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
            body = await answer.read()
    assert body.startswith(one_engine.chunks[0])
    assert b'"code":"engine_connection_lost"' in body


async def test_a_streamed_chat_completion_that_fails_at_once_is_a_json_error(
    address: str, one_engine: StandInEngine
) -> None:
    one_engine.status = 400
    one_engine.chunks = [b'{"error": {"message": "too long", "type": "BadRequestError", "code": 400}}']
    status, headers, body = await ask("POST", f"{address}/v1/chat/completions", json=CHAT | {"stream": True})
    assert (status, headers["Content-Type"]) == (400, "application/json")
    assert "too long" in body["error"]["message"]


async def test_models_lists_the_model_of_the_config(address: str) -> None:
    async with openai_client(address) as client:
        assert [model.id async for model in client.models.list()] == ["my/model"]


async def test_health_is_200_when_requests_are_answered(address: str) -> None:
    status, _, body = await ask("GET", f"{address}/health")
    assert (status, body["status"]) == (200, "ready")


async def test_inner_config_shows_where_the_engine_is(address: str, one_engine: StandInEngine) -> None:
    status, _, body = await ask("GET", f"{address}/get_inner_vllm_config")
    told = {"base_url": [one_engine.base_url], "api_key": "EMPTY", "model": MODEL, "direct_responses": False}
    assert (status, body) == (200, told)


async def test_inner_config_does_not_show_a_real_key(one_engine: StandInEngine) -> None:
    async with serving(model_server(over(one_engine, api_key="sk-secret"))) as address:
        _, _, body = await ask("GET", f"{address}/get_inner_vllm_config")
        await ask("POST", f"{address}/v1/responses", json=ASK)
    assert "sk-secret" not in str(body)
    assert one_engine.asked[0]["headers"]["authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/v1/nowhere", {}, 404, "not_found"),
        ("GET", "/", {}, 404, "not_found"),
        ("GET", "/v1/responses", {}, 405, "method_not_allowed"),
        ("POST", "/health", {}, 405, "method_not_allowed"),
        ("POST", "/v1/responses", {"data": "a=b", "headers": {"content-type": "text/plain"}}, 415,
         "unsupported_media_type"),
    ],
)  # fmt: skip
async def test_what_is_asked_wrongly_gets_an_error_object(
    address: str, method: str, path: str, options: dict, status: int, code: str
) -> None:
    got, _, body = await ask(method, address + path, **options)
    assert (got, body["error"]["code"]) == (status, code)
    assert body["error"]["type"] == "invalid_request_error"
    assert set(body["error"]) == {"message", "type", "param", "code"}


async def test_a_body_that_is_no_json_is_400(address: str) -> None:
    headers = {"content-type": "application/json"}
    for path in ("/v1/responses", "/v1/chat/completions"):
        status, _, body = await ask("POST", address + path, data=b'{"model": ', headers=headers)
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")


async def test_json_with_a_charset_is_json(address: str) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    status, _, _ = await ask("POST", f"{address}/v1/responses", json=ASK, headers=headers)
    assert status == 200


async def pieces(size: int):
    for _ in range(size):
        yield b" "


@pytest.mark.parametrize("body", [b" " * 2000, pieces(2000)], ids=["with its length", "in chunks"])
async def test_a_body_over_the_limit_is_413(one_engine: StandInEngine, body: object) -> None:
    server = model_server(over(one_engine), limits=Limits(max_body_bytes=1000))
    headers = {"content-type": "application/json"}
    async with serving(server) as address:
        status, _, answer = await ask("POST", f"{address}/v1/responses", data=body, headers=headers)
    assert (status, answer["error"]["code"]) == (413, "request_too_large")
    assert not one_engine.asked


async def stalled():
    yield b'{"model": '
    await asyncio.sleep(20)


async def test_a_body_that_does_not_arrive_is_408(one_engine: StandInEngine) -> None:
    server = model_server(over(one_engine), limits=Limits(body_timeout_s=0.2))
    headers = {"content-type": "application/json"}
    async with serving(server) as address:
        status, _, answer = await ask("POST", f"{address}/v1/responses", data=stalled(), headers=headers)
    assert (status, answer["error"]["code"]) == (408, "request_timeout")


async def test_a_body_of_which_nothing_arrives_is_408(one_engine: StandInEngine) -> None:
    server = model_server(over(one_engine), limits=Limits(body_timeout_s=0.2))
    async with serving(server) as address:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        writer.write(b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        async with asyncio.timeout(5):
            assert b" 408 " in await reader.readline()
        writer.close()


async def test_an_engine_that_refuses_is_a_503_that_names_it() -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    async with serving(model_server(FixedEndpoints([url], "EMPTY", MODEL))) as address:
        for path, body in (("/v1/responses", ASK), ("/v1/chat/completions", CHAT | {"stream": True})):
            status, headers, answer = await ask("POST", address + path, json=body)
            assert (status, answer["error"]["code"]) == (503, "engine_unavailable")
            assert url in answer["error"]["message"]
            assert int(headers["Retry-After"]) > 0


async def test_an_engine_that_is_not_ready_is_a_503_with_retry_after() -> None:
    source = Switch(NotReady("starting", "The engine is loading weights (12 s).", 7))
    async with serving(model_server(source)) as address:
        for method, path, options in (
            ("POST", "/v1/responses", {"json": ASK}),
            ("POST", "/v1/chat/completions", {"json": CHAT}),
            ("GET", "/health", {}),
            ("GET", "/get_inner_vllm_config", {}),
        ):
            status, headers, answer = await ask(method, address + path, **options)
            assert (status, headers["Retry-After"]) == (503, "7")
            assert answer["error"]["type"] == "server_error"
            assert answer["error"]["code"] == "engine_starting"
            assert "loading weights" in answer["error"]["message"]
        _, _, models = await ask("GET", f"{address}/v1/models")
        assert models["data"] == []


async def test_an_engine_that_failed_for_good_tells_clients_not_to_retry() -> None:
    source = Switch(NotReady("failed", "The engine is out of memory.", None))
    async with serving(model_server(source)) as address:
        status, headers, answer = await ask("POST", f"{address}/v1/responses", json=ASK)
    assert (status, headers["x-should-retry"]) == (503, "false")
    assert "Retry-After" not in headers
    assert answer["error"]["code"] == "engine_failed"


async def test_a_server_answers_as_soon_as_its_engine_is_ready(one_engine: StandInEngine) -> None:
    source = Switch(NotReady("starting", "Not yet.", 1))
    async with serving(model_server(source)) as address:
        assert source.running
        assert (await ask("POST", f"{address}/v1/responses", json=ASK))[0] == 503
        source.state = over(one_engine).current()
        assert (await ask("POST", f"{address}/v1/responses", json=ASK))[0] == 200
    assert not source.running


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_the_engines_status_and_message_are_kept(
    address: str, one_engine: StandInEngine, path: str
) -> None:
    one_engine.status = 422
    one_engine.body = b'{"error": {"message": "no such thing", "type": "BadRequestError", "code": 422}}'
    status, _, body = await ask("POST", address + path, json=ASK | CHAT if "chat" in path else ASK)
    assert status == 422
    assert "no such thing" in body["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_an_engine_that_says_when_to_ask_again_is_heard(
    address: str, one_engine: StandInEngine, path: str, stream: bool
) -> None:
    one_engine.status, one_engine.headers = 429, [(b"retry-after", b"7")]
    asked = {**(CHAT if "chat" in path else ASK), "stream": stream}
    status, headers, _ = await ask("POST", address + path, json=asked)
    assert (status, {name.lower(): value for name, value in headers.items()}["retry-after"]) == (429, "7")


async def test_an_engine_that_breaks_off_is_502(address: str, one_engine: StandInEngine) -> None:
    one_engine.break_off = True
    status, _, body = await ask("POST", f"{address}/v1/responses", json=ASK)
    assert (status, body["error"]["code"]) == (502, "engine_connection_lost")
    assert one_engine.base_url in body["error"]["message"]


async def test_an_engine_that_takes_too_long_is_504(one_engine: StandInEngine) -> None:
    one_engine.delay_s = 10
    server = model_server(over(one_engine), timeouts=Timeouts(total_s=0.2))
    async with serving(server) as address:
        status, _, body = await ask("POST", f"{address}/v1/responses", json=ASK)
    assert (status, body["error"]["code"]) == (504, "engine_timeout")


async def test_our_own_mistake_is_a_500_that_tells_nothing(
    one_engine: StandInEngine, caplog: pytest.LogCaptureFixture
) -> None:
    server = model_server(Switch(None))  # type: ignore[arg-type]
    async with serving(server) as address:
        status, _, body = await ask("POST", f"{address}/v1/responses", json=ASK)
    assert (status, body["error"]["type"], body["error"]["code"]) == (500, "server_error", "internal_error")
    assert "NoneType" not in str(body)
    assert "NoneType" in caplog.text


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_a_client_that_leaves_ends_the_engines_work(
    address: str, one_engine: StandInEngine, path: str
) -> None:
    one_engine.delay_s = 20
    async with aiohttp.ClientSession() as session:
        with pytest.raises(TimeoutError):
            await session.post(address + path, json=ASK | CHAT if "chat" in path else ASK,
                               timeout=aiohttp.ClientTimeout(total=0.3))  # fmt: skip
        left = time.monotonic()
        async with asyncio.timeout(5):
            await one_engine.aborted.wait()
    assert time.monotonic() - left < 1


async def test_a_client_that_leaves_a_stream_ends_the_engines_work(
    address: str, one_engine: StandInEngine
) -> None:
    one_engine.chunks = [b"data: {}\n\n"] * 500
    async with aiohttp.ClientSession() as session:
        answer = await session.post(f"{address}/v1/chat/completions", json=CHAT | {"stream": True})
        await answer.content.readany()
        answer.close()
        left = time.monotonic()
        async with asyncio.timeout(5):
            await one_engine.aborted.wait()
    assert time.monotonic() - left < 1


def with_token_ids(answer: dict, *, prompt: list[int] | None) -> bytes:
    """A chat answer with the ids and log probabilities that training asks for."""
    choice = answer["choices"][0]
    choice["token_ids"] = [7, 8]
    choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.25}]}
    return json.dumps(answer | {"prompt_token_ids": prompt}).encode()


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "from tokenize"])
async def test_token_ids_come_inline_or_else_from_tokenize(one_engine: StandInEngine, inline: bool) -> None:
    one_engine.body = with_token_ids(chat_answer("Hi"), prompt=[1, 2, 3] if inline else None)
    one_engine.bodies_by_path["/tokenize"] = b'{"count": 3, "tokens": [1, 2, 3]}'
    settings = ConverterSettings(return_token_id_information=True)
    async with serving(model_server(over(one_engine), settings=settings)) as address:
        status, _, body = await ask("POST", f"{address}/v1/responses", json=ASK)
    last = body["output"][-1]
    assert (status, last["prompt_token_ids"], last["generation_token_ids"]) == (200, [1, 2, 3], [7, 8])
    assert last["generation_log_probs"] == [-0.5, -1.25]
    paths = [asked["path"] for asked in one_engine.asked]
    assert paths == ["/v1/chat/completions"] + ([] if inline else ["/tokenize"])


class LosesTokenize(StandInEngine):
    """Breaks its connection off in the middle of what /tokenize says."""

    async def _answer(self, path: str, send: Callable) -> None:
        self.break_off = path == "/tokenize"
        await super()._answer(path, send)


async def test_an_answer_stays_one_when_tokenize_fails(caplog: pytest.LogCaptureFixture) -> None:
    losing = LosesTokenize()
    losing.body = with_token_ids(chat_answer("Hi"), prompt=None)
    async with serving(losing, lifespan="off") as url:
        losing.base_url = f"{url}/v1"
        settings = ConverterSettings(return_token_id_information=True)
        async with serving(model_server(over(losing), settings=settings)) as address:
            status, _, body = await ask("POST", f"{address}/v1/responses", json=ASK)
    assert (status, body["output"][0]["content"][0]["text"]) == (200, "Hi")
    assert [asked["path"] for asked in losing.asked] == ["/v1/chat/completions", "/tokenize"]
    assert "Token ids were asked for and are missing" in caplog.text


async def test_missing_token_ids_are_warned_of_once(
    one_engine: StandInEngine, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ConverterSettings(return_token_id_information=True)
    async with serving(model_server(over(one_engine), settings=settings)) as address:
        for _ in range(2):
            assert (await ask("POST", f"{address}/v1/responses", json=ASK))[0] == 200
    assert caplog.text.count("Token ids were asked for and are missing") == 1
