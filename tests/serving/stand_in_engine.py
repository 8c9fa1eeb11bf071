"""A stand-in for one engine, at the HTTP boundary.

What an engine answers is tested on a real one elsewhere. Here the question is what the HTTP side does with an
answer, and that needs engines that are slow, refuse, break off or stream on command, in milliseconds and
many at a time; a real engine does none of that when asked. It is a real server on a real port all the same.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

MODEL = "stand-in"


def chat_answer(text: str) -> dict[str, Any]:
    """The shape of a whole chat completion of vLLM."""
    message = {"role": "assistant", "content": text, "reasoning": None, "tool_calls": []}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2},
    }


class StandInEngine:
    """Answers everything with `body`, after `delay_s`, and keeps what it was asked; it has no metrics."""

    def __init__(self, text: str = "Hello") -> None:
        self.status = 200
        self.body = json.dumps(chat_answer(text)).encode()
        self.bodies_by_path: dict[str, bytes] = {}
        self.headers: list[tuple[bytes, bytes]] = []
        self.delay_s = 0.0
        self.chunks: list[bytes] | None = None
        self.break_off = False
        self.asked: list[dict[str, Any]] = []
        self.aborted = asyncio.Event()
        self.base_url = ""

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        body = await _whole_body(receive)
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        if scope["path"] == "/metrics":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            return await send({"type": "http.response.body", "body": b""})
        asked = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode()}
        self.asked.append(asked | {"headers": headers, "body": json.loads(body or b"null")})
        if self.delay_s and await self._client_leaves(receive):
            return
        if self.chunks is not None:
            await self._stream(receive, send)
        else:
            await self._answer(scope["path"], send)

    async def _client_leaves(self, receive: Callable) -> bool:
        try:
            async with asyncio.timeout(self.delay_s):
                await receive()
        except TimeoutError:
            return False
        self.aborted.set()
        return True

    async def _answer(self, path: str, send: Callable) -> None:
        body = self.bodies_by_path.get(path, self.body)
        promised = len(body) + (10 if self.break_off else 0)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % promised), *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": self.break_off})

    async def _stream(self, receive: Callable, send: Callable) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        leaving = asyncio.ensure_future(receive())
        for chunk in self.chunks or []:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.wait([leaving], timeout=0.02)
            if leaving.done():
                self.aborted.set()
                return
        leaving.cancel()
        if not self.break_off:
            await send({"type": "http.response.body", "body": b""})


async def _whole_body(receive: Callable) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


@asynccontextmanager
async def serving(app: Any, *, lifespan: str = "on") -> AsyncIterator[str]:
    """Runs an ASGI application under a real uvicorn on a free loopback port; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, log_level="critical", lifespan=lifespan, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        async with asyncio.timeout(10):
            while not server.started and not running.done():
                await asyncio.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            async with asyncio.timeout(10):
                await running


@asynccontextmanager
async def engine(text: str = "Hello") -> AsyncIterator[StandInEngine]:
    stand_in = StandInEngine(text)
    async with serving(stand_in, lifespan="off") as address:
        stand_in.base_url = f"{address}/v1"
        yield stand_in


def mounted_at(root_path: str, app: Any) -> Callable:
    """Calls an application as Ray Serve does: its mount in `root_path`, and in `path` too."""

    async def mounted(scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        await app({**scope, "root_path": root_path}, receive, send)

    return mounted


def closed_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
