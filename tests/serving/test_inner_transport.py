"""Calls of an ASGI application in the same process: who holds whom up, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from chat_events import EndlessEngine
from direct_way import KEY, Guarded, ask, leave
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from stand_in_engine import StandInEngine, serving

from local_vllm.engine.spec import DIRECT_VARIABLE
from local_vllm.serving.client import Timeouts
from local_vllm.serving.direct import DirectResponses
from local_vllm.serving.inner_transport import PIECES_AHEAD, ROOT_URL, InnerTransport, asked_in

pytestmark = pytest.mark.timeout(30)

URL = f"{ROOT_URL}/v1/chat/completions"
PIECE = b"x" * 100


@pytest.fixture(autouse=True)
def asked() -> None:
    """The request in whose name the application is asked."""
    asked_in.set({"type": "http", "method": "POST", "path": "/v1/responses", "query_string": b"a=1", "headers": []})


async def test_an_application_is_held_up_by_whoever_reads_slowly() -> None:
    engine = EndlessEngine(PIECE)
    async with InnerTransport(engine).stream(URL, b"{}", (), Timeouts()) as answer:
        assert await anext(answer.chunks) == PIECE
        await asyncio.sleep(0.05)
        assert engine.sent_bytes <= (PIECES_AHEAD + 2) * len(PIECE)
    async with asyncio.timeout(5):
        await engine.aborted.wait()


@pytest.mark.parametrize("read", [True, False], ids=["a reader", "nobody"])
async def test_a_stream_ends_at_its_deadline(read: bool) -> None:
    engine = EndlessEngine(PIECE)
    if read:
        engine = StandInEngine()
        engine.chunks = [PIECE] * 1000
    with pytest.raises(TimeoutError):
        async with InnerTransport(engine).stream(URL, b"{}", (), Timeouts(total_s=0.2)) as answer:
            await asyncio.sleep(0 if read else 0.3)
            async for _ in answer.chunks:
                pass
    async with asyncio.timeout(5):
        await engine.aborted.wait()


async def test_the_query_of_the_client_is_not_passed_on() -> None:
    engine = StandInEngine()
    answer = await InnerTransport(engine).post(f"{ROOT_URL}/tokenize", b'{"a": 1}', (), Timeouts())
    assert (answer.status, answer.content_type, answer.body) == (200, "application/json", engine.body)
    (asked,) = engine.asked
    assert (asked["path"], asked["query"], asked["body"]) == ("/tokenize", "", {"a": 1})


async def test_in_an_application_of_fastapi_the_key_is_asked_and_a_stream_ends_with_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Put together as vLLM does it: the key first, and what the command line adds around that."""
    application, ended = FastAPI(), asyncio.Event()

    @application.post("/v1/chat/completions")
    async def chat(body: dict) -> StreamingResponse:
        return StreamingResponse(words(), media_type="text/event-stream")

    async def words() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setenv(DIRECT_VARIABLE, '{"server": "policy_model", "model": "m"}')
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    application.add_middleware(Guarded)
    application.add_middleware(DirectResponses)
    body = {"input": "Hi", "stream": True}
    async with serving(application) as address:
        assert (await ask(address, body, key="another"))[0] == 401
        await leave(address, body)
        async with asyncio.timeout(5):
            await ended.wait()
