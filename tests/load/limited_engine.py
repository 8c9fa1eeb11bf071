"""An engine with a capacity: `python limited_engine.py PORT AT_ONCE SERVICE_S`.

It answers AT_ONCE requests at a time, each after SERVICE_S, in the order in which they came, whatever else is asked of
it: what a real engine does under load, at a rate that is known. `BLOCKS:n` is answered by n blocks of 64 KiB, one every
25 ms.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

import uvicorn

CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": "m"}


class LimitedEngine:
    def __init__(self, at_once: int, service_s: float) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._service_s = service_s
        self.waiting = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["path"] == "/metrics":
            return await _send(send, 404, b"")
        if scope["path"] == "/waiting":
            return await _send(send, 200, b"%d" % self.waiting)
        left = asyncio.ensure_future(_until_left(receive))
        answering = asyncio.ensure_future(self._answer(json.loads(body), send))
        await asyncio.wait([left, answering], return_when=asyncio.FIRST_COMPLETED)
        for task in (left, answering):
            task.cancel()

    async def _answer(self, asked: dict[str, Any], send: Any) -> None:
        self.waiting += 1
        try:
            async with self._places:
                await asyncio.sleep(self._service_s)
        finally:
            self.waiting -= 1
        found = re.search(r"BLOCKS:(\d+)", json.dumps(asked["messages"]))
        words = ["x" * 2**16] * int(found[1]) if found else ["Hello"]
        if asked.get("stream"):
            return await _stream(send, words)
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 3 + len(words)}
        whole = CHUNK | {"object": "chat.completion", "choices": [choice], "usage": usage}
        await _send(send, 200, json.dumps(whole).encode())


async def _until_left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(send: Any, words: list[str]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for word in words:
        choices = [{"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": None}]
        await _event(send, {"choices": choices})
        await asyncio.sleep(0.025)
    await _event(send, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    await _event(send, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _event(send: Any, more: dict[str, Any]) -> None:
    data = b"data: " + json.dumps(CHUNK | more).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})


if __name__ == "__main__":
    port, at_once, service_s = sys.argv[1:]
    app = LimitedEngine(int(at_once), float(service_s))
    uvicorn.run(app, port=int(port), log_level="critical", lifespan="off")
