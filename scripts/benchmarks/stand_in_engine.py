"""Answers like vLLM's API server, from bytes that were made before: nothing is parsed but HTTP, so that one core
answers tens of thousands of requests a second and the stand-in is never what is measured.

    python -m benchmarks.stand_in_engine PORT

What to answer is said by the last `[[answer:<kind>:<prompt tokens>:<tokens>:<pace in ms>]]` in the body. Kinds: `text`;
`tool`, which is reasoning, text and a call; `tokens`, text with ids and log probabilities. As in vLLM, ids and log
probabilities come only when they are asked for. A stream has its events one by one if there is a pace.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from functools import cache
from typing import Any

import uvloop
from httptools import HttpRequestParser

from benchmarks.scenarios import VOCABULARY, words

MARK = re.compile(rb"\[\[answer:([a-z]+):(\d+):(\d+):(\d+)\]\]")
MODEL = "stand-in"
ABOUT = {"id": "chatcmpl-" + "0" * 32, "created": 1_760_000_000, "model": MODEL}
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
REASONING_WORDS = 96
CALL = {
    "id": "chatcmpl-tool-0123456789abcdef",
    "type": "function",
    "function": {"name": "search_files", "arguments": json.dumps({"pattern": "def convert", "path": "src"})},
}


def ids(count: int, seed: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(VOCABULARY) for _ in range(count)]


def logprobs(tokens: list[int]) -> list[dict[str, Any]]:
    chosen = random.Random(4)
    return [
        {
            "token": f"token_id:{token}",
            "logprob": -abs(chosen.gauss(0, 1)),
            "bytes": [chosen.randrange(32, 127) for _ in range(4)],
            "top_logprobs": [],
        }
        for token in tokens
    ]


def message(kind: str, tokens: int) -> dict[str, Any]:
    said = {"role": "assistant", "content": words(max(1, tokens * 4 // 5), 11), "refusal": None, "annotations": None}
    said |= {"audio": None, "function_call": None, "reasoning": None}
    return said | {"reasoning": words(REASONING_WORDS, 12), "tool_calls": [CALL]} if kind == "tool" else said


def completion(kind: str, prompt_tokens: int, tokens: int, with_ids: bool, with_logprobs: bool) -> dict[str, Any]:
    generated = ids(tokens, 3)
    choice = {
        "index": 0,
        "message": message(kind, tokens),
        "logprobs": {"content": logprobs(generated)} if with_logprobs else None,
        "finish_reason": "tool_calls" if kind == "tool" else "stop",
        "stop_reason": None,
        "token_ids": generated if with_ids else None,
    }
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    return {
        **ABOUT,
        "object": "chat.completion",
        "choices": [choice],
        "usage": usage,
        "prompt_logprobs": None,
        "prompt_token_ids": ids(prompt_tokens, 5) if with_ids else None,
        "kv_transfer_params": None,
    }


def events(whole: dict[str, Any]) -> list[bytes]:
    """The stream of a completion of text: one event for each word."""
    (choice,) = whole["choices"]

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + _json({**ABOUT, "object": "chat.completion.chunk", "choices": choices, **more}) + b"\n\n"

    def delta(fields: dict[str, Any], ending: str | None = None) -> bytes:
        return event([{"index": 0, "delta": fields, "logprobs": None, "finish_reason": ending}])

    said = [delta({"content": f"{word} "}) for word in choice["message"]["content"].split()]
    first, last = delta({"role": "assistant", "content": ""}), delta({}, choice["finish_reason"])
    return [first, *said, last, event([], usage=whole["usage"]), b"data: [DONE]\n\n"]


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def whole(body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@cache
def completion_bytes(mark: tuple[bytes, ...], with_ids: bool, with_logprobs: bool, stream: bool) -> tuple[bytes, ...]:
    """What is written, piece by piece."""
    kind, prompt_tokens, tokens, pace_ms = mark[0].decode(), *map(int, mark[1:])
    made = completion(kind, prompt_tokens, tokens, with_ids, with_logprobs)
    if not stream:
        return (whole(_json(made)),)
    pieces = [b"%x\r\n%b\r\n" % (len(event), event) for event in events(made)]
    pieces = [SSE_HEAD + pieces[0], *pieces[1:-1], pieces[-1] + LAST_CHUNK]
    return tuple(pieces) if pace_ms else (b"".join(pieces),)


def asks(body: bytes, field: bytes) -> bool:
    return b'"%b":true' % field in body or b'"%b": true' % field in body


MODELS = whole(_json({"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 131_072}]}))
METRICS = whole(b'vllm:num_requests_waiting{engine="0"} 0.0\n', "text/plain")
NOTHING = whole(b"{}")


class Connection(asyncio.Protocol):
    """A client's connection. Requests are answered in turn; nobody here sends a second before the first is answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parser = HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url = b""
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        if self._url.endswith(b"/chat/completions"):
            self._complete(body)
        else:
            page = MODELS if self._url.endswith(b"/models") else METRICS if self._url == b"/metrics" else NOTHING
            self._transport.write(page)

    def _complete(self, body: bytes) -> None:
        mark = MARK.search(body, max(0, body.rfind(b"[[answer:")))
        wanted = mark.groups() if mark else (b"text", b"100", b"200", b"0")
        with_ids, with_logprobs = asks(body, b"return_token_ids"), asks(body, b"logprobs")
        pieces = completion_bytes(wanted, with_ids, with_logprobs, asks(body, b"stream"))
        self._write(pieces, 0, int(wanted[3]) / 1000)

    def _write(self, pieces: tuple[bytes, ...], number: int, pace_s: float) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(pieces[number])
        if number + 1 < len(pieces):
            asyncio.get_running_loop().call_later(pace_s, self._write, pieces, number + 1, pace_s)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
