"""A transport to an ASGI application of the same process: no connection, and no bytes copied.

It asks in the name of the request that is being answered, with the headers that came with that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, MutableMapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from local_vllm.serving.asgi import Application
from local_vllm.serving.client import ConnectionBroken, EngineAnswer, EngineStream, HeaderLines, Timeouts
from local_vllm.serving.replies import logger
from local_vllm.serving.requests import Scope

# Where the application is, for those who need an address.
ROOT_URL = "http://this-engine"
# The scope of the request in whose name the application is asked.
asked_in: ContextVar[Scope] = ContextVar("asked_in")

# A client that reads slowly holds the application up after so many pieces.
PIECES_AHEAD = 16
# What a client that has gone away means to the application: nothing that it sends is heard, and nothing fails.
_ASGI = {"version": "3.0", "spec_version": "2.3"}
# What an application does not send: that it has returned, and that it should have.
_ENDED, _LATE = "ended", "late"
# What a client says of its own body, and of how it would take one that is compressed.
_NOT_PASSED_ON = frozenset(
    {b"content-type", b"content-length", b"content-encoding", b"transfer-encoding", b"accept-encoding", b"expect"}
)


class InnerTransport:
    """The headers that it is given are those of a client of its own, and are left out."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._running: set[asyncio.Task[None]] = set()

    async def post(self, url: str, body: bytes, headers: HeaderLines, timeouts: Timeouts) -> EngineAnswer:
        async with self.stream(url, body, headers, timeouts) as answer:
            whole = b"".join([piece async for piece in answer.chunks])
            return EngineAnswer(answer.status, answer.content_type, whole, answer.retry_after)

    @asynccontextmanager
    async def stream(
        self, url: str, body: bytes, headers: HeaderLines, timeouts: Timeouts, *, method: str = "POST"
    ) -> AsyncIterator[EngineStream]:
        call = _Call(body)
        deadline = asyncio.get_running_loop().call_later(timeouts.total_s, call.end)
        # A task of its own: it is never cancelled, since vLLM ends what it generates for clients that go away only.
        task = asyncio.create_task(self._run(_inner(asked_in.get(), method, url, body), call))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            yield await call.answer()
        finally:
            deadline.cancel()
            call.leave()

    async def _run(self, scope: Scope, call: _Call) -> None:
        try:
            await self._application(scope, call.receive, call.send)
        except Exception as error:
            logger.error("The engine's API server failed over %s", scope["path"], exc_info=error)
        await call.send({"type": _ENDED})

    async def close(self) -> None:
        return None


class _Call:
    """One request to the application: what that receives and sends, and what there is to read of it."""

    __slots__ = ("_body", "_left", "_sent")

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._left = asyncio.Event()
        self._sent: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue(PIECES_AHEAD)

    async def receive(self) -> dict[str, Any]:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if not self._left.is_set():
            await self._sent.put(message)

    def leave(self) -> None:
        """Nobody reads on; whoever waits to send need not."""
        self._left.set()
        while not self._sent.empty():
            self._sent.get_nowait()

    def end(self) -> None:
        """It has taken too long: what has been sent and not read does not matter any more."""
        self.leave()
        self._sent.put_nowait({"type": _LATE})

    async def answer(self) -> EngineStream:
        """Its status and what matters of its headers, as soon as they are sent."""
        start = await self._next("http.response.start")
        headers = dict(start.get("headers", ()))
        kind = _text(headers, b"content-type") or "application/octet-stream"
        return EngineStream(start["status"], kind, self._pieces(), _text(headers, b"retry-after"))

    async def _pieces(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._next("http.response.body")
            more = message.get("more_body", False)
            if piece := message.get("body", b""):
                yield piece

    async def _next(self, kind: str) -> MutableMapping[str, Any]:
        while (message := await self._sent.get())["type"] != kind:
            if message["type"] == _ENDED:
                raise ConnectionBroken("it ended without all of it.")
            if message["type"] == _LATE:
                raise TimeoutError
        return message


def _inner(asked: Scope, method: str, url: str, body: bytes) -> Scope:
    """The scope of a request for `url`, below ROOT_URL, that whoever asked `asked` might have made."""
    path = url.removeprefix(ROOT_URL)
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return {
        **asked,
        "asgi": _ASGI,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [*_passed_on(asked["headers"]), *own],
    }


def _passed_on(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name not in _NOT_PASSED_ON]


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return value.decode("latin-1") if value is not None else None
