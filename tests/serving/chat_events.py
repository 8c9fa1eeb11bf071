"""What an engine streams, as bytes of server-sent events, and engines that a test holds in its hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from stand_in_engine import MODEL, StandInEngine, serving

USAGE = {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2}


def event(payload: dict[str, Any] | str) -> bytes:
    data = payload if isinstance(payload, str) else json.dumps(payload)
    return f"data: {data}\n\n".encode()


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return event(head | {"choices": [choice]} | more)


def failure(message: str, status: int) -> bytes:
    return event({"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}})


FIRST = chunk({"role": "assistant", "content": ""})
USED = event({"model": MODEL, "choices": [], "usage": USAGE})
DONE = event("[DONE]")


def said(*words: str, finish_reason: str = "stop") -> list[bytes]:
    """The stream of an answer in these words."""
    return [FIRST, *[chunk({"content": word}) for word in words], chunk({}, finish_reason), USED, DONE]


class HeldEngine(StandInEngine):
    """Streams what `say` is given, when it is given it; `hang_up` ends the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks = []
        self._words: asyncio.Queue[bytes | None] = asyncio.Queue()

    def say(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self._words.put_nowait(piece)

    def hang_up(self) -> None:
        self._words.put_nowait(None)

    async def _stream(self, receive: Callable, send: Callable) -> None:
        await send({
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/event-stream")],
        })  # fmt: skip
        leaving = asyncio.ensure_future(self._until_left(receive))
        while (piece := await self._words.get()) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        leaving.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _until_left(self, receive: Callable) -> None:
        await receive()
        self.aborted.set()
        self.hang_up()


class EndlessEngine(StandInEngine):
    """Streams as fast as it is read; `sent_bytes` says how much it got rid of."""

    def __init__(self, piece: bytes) -> None:
        super().__init__()
        self.chunks = [piece]
        self.sent_bytes = 0

    async def _stream(self, receive: Callable, send: Callable) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        piece = (self.chunks or [b""])[0]
        leaving = asyncio.ensure_future(receive())
        while not leaving.done():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self.sent_bytes += len(piece)
        self.aborted.set()


@asynccontextmanager
async def started(engine: StandInEngine) -> AsyncIterator[StandInEngine]:
    async with serving(engine, lifespan="off") as address:
        engine.base_url = f"{address}/v1"
        yield engine
