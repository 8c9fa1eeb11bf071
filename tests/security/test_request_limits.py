"""What a request may cost: beyond each limit there is OpenAI's error object, and the engine hears nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from servers_under_test import model_server, over
from stand_in_engine import StandInEngine, engine, serving

from local_vllm.protocol import ConverterSettings
from local_vllm.serving.gateway import Gateway
from local_vllm.serving.requests import Bodies, Limits

DEEP = 100_000
USER = {"role": "user", "content": "Hello!"}


@pytest.fixture
async def one_engine() -> AsyncIterator[StandInEngine]:
    async with engine() as stand_in:
        yield stand_in


@pytest.fixture
async def address(one_engine: StandInEngine) -> AsyncIterator[str]:
    settings = ConverterSettings(max_input_items=5, max_image_mib=1)
    limits = Limits(max_body_bytes=8 << 20, bodies=Bodies())
    async with serving(Gateway([model_server(over(one_engine), settings=settings, limits=limits)])) as where:
        yield where


async def asked(url: str, body: Any, **more: Any) -> tuple[int, dict[str, Any], Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | more
    async with aiohttp.ClientSession() as session, session.post(url, data=data, headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers


def image(mib: float) -> str:
    return "data:image/png;base64," + base64.b64encode(bytes(int(mib * 2**20))).decode()


def nested(before: bytes) -> bytes:
    return b'{"model": "my/model", ' + before + b"[" * DEEP + b"]" * DEEP + b"}"


@pytest.mark.parametrize("field", [b'"input": ', b'"metadata": ', b'"tools": ', b'"extra": ', b'"text": '])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/policy_model/v1/responses"])
async def test_json_that_is_nested_too_deep_is_a_400(
    address: str, one_engine: StandInEngine, path: str, field: bytes
) -> None:
    body = nested(field) if path != "/v1/chat/completions" else nested(field.replace(b"input", b"messages"))
    status, answer, _ = await asked(address + path, body)
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"
    assert not one_engine.asked


async def test_more_items_than_a_request_may_have_are_refused(address: str, one_engine: StandInEngine) -> None:
    for path, key in (("/v1/responses", "input"), ("/v1/chat/completions", "messages")):
        status, answer, _ = await asked(address + path, {"model": "my/model", key: [USER] * 6})
        assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, key, "array_above_max_length")
        assert not one_engine.asked
    for path, key in (("/v1/responses", "input"), ("/v1/chat/completions", "messages")):
        assert (await asked(address + path, {"model": "my/model", key: [USER] * 5}))[0] == 200


async def test_an_image_that_is_too_large_is_refused_by_its_place(address: str, one_engine: StandInEngine) -> None:
    for mib, expected in ((1.01, 400), (0.99, 200)):
        part = {"type": "input_image", "image_url": image(mib)}
        body = {"model": "my/model", "input": [USER, {"role": "user", "content": [part]}]}
        status, answer, _ = await asked(f"{address}/v1/responses", body)
        assert status == expected
        if status == 400:
            assert answer["error"]["code"] == "image_too_large"
            assert answer["error"]["param"] == "input[1].content[0].image_url"
            assert not one_engine.asked
        chat_part = {"type": "image_url", "image_url": {"url": image(mib)}}
        chat = {"model": "my/model", "messages": [{"role": "user", "content": [chat_part]}]}
        status, answer, _ = await asked(f"{address}/v1/chat/completions", chat)
        assert status == expected
        if status == 400:
            assert answer["error"]["param"] == "messages[0].content[0].image_url"


async def test_headers_that_are_too_large_are_a_431(address: str, one_engine: StandInEngine) -> None:
    body = {"model": "my/model", "input": "Hello!"}
    status, answer, _ = await asked(f"{address}/v1/responses", body, **{f"X-{n}": "x" * 7000 for n in range(5)})
    assert (status, answer["error"]["code"]) == (431, "request_header_fields_too_large")
    assert not one_engine.asked


async def test_a_body_that_is_too_large_is_a_413_whether_it_says_its_length_or_not(
    address: str, one_engine: StandInEngine
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield bytes(1 << 20)

    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:
        for data in (bytes(9 << 20), pieces()):
            async with session.post(f"{address}/v1/responses", data=data) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (413, "request_too_large")
    assert not one_engine.asked


async def test_bodies_together_are_bounded_and_what_was_answered_counts_no_more(one_engine: StandInEngine) -> None:
    bodies = Bodies(max_bytes=3 << 20)
    app = model_server(over(one_engine), limits=Limits(bodies=bodies))
    async with serving(app) as address:
        for size, expected in ((2, 200), (2, 200), (4, 429), (2, 200)):
            body = {"model": "m", "input": "x" * (size << 20)}
            status, answer, headers = await asked(f"{address}/v1/responses", body)
            assert status == expected
            if status == 429:
                assert answer["error"]["code"] == "rate_limit_exceeded" and int(headers["retry-after"]) > 0
            assert bodies.held == 0


async def test_addresses_in_a_request_go_to_the_engine_unfetched(address: str, one_engine: StandInEngine) -> None:
    fetched: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        fetched.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with serving(app, lifespan="off") as private:
        parts = [
            {"type": "input_image", "image_url": f"{private}/image"},
            {"type": "input_video", "video_url": f"{private}/video"},
            {"type": "audio_url", "audio_url": f"{private}/audio"},
        ]
        body = {"model": "my/model", "input": [{"role": "user", "content": parts}]}
        assert (await asked(f"{address}/v1/responses", body))[0] == 200
    sent = json.dumps(one_engine.asked[-1]["body"])
    assert all(f"{private}/{kind}" in sent for kind in ("image", "video", "audio"))
    assert fetched == []
