"""vLLM's chat stream as the tests write it: the data of its events, and what the converter makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from local_vllm.protocol.converter import Converter
from local_vllm.protocol.settings import ConverterSettings

DONE = b"[DONE]"
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
CUSTOM = {"type": "custom", "name": "patch"}
TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}}, CUSTOM]


def chunk(delta: dict[str, Any] | None = None, finish_reason: str | None = None, **more: Any) -> bytes:
    """One event of the stream; `more` are fields of its choice, or of the event (`prompt_...`)."""
    top = {name: more.pop(name) for name in list(more) if name.startswith("prompt_")}
    choice = {"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": finish_reason} | more
    return json.dumps(_event([choice]) | top).encode()


def _event(choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "org/engine-model",
        "choices": choices,
    }


FIRST = chunk({"role": "assistant", "content": ""})
USED = json.dumps(_event([]) | {"usage": USAGE}).encode()


def call_piece(
    index: int, arguments: str | None = None, name: str | None = None, **more: Any
) -> dict[str, Any]:
    """A delta with one piece of a call; the first piece has the name."""
    begun = {"id": f"c{index}", "type": "function"} if name else {}
    function = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, "function": function} | begun | more]}


def stream_of(*deltas: dict[str, Any], finish_reason: str = "stop") -> list[bytes]:
    """A whole stream: the role, the deltas, the finish reason, the usage, and goodbye."""
    return [FIRST, *map(chunk, deltas), chunk({}, finish_reason), USED, DONE]


class Conversion:
    """One request for a stream, and the events that it was answered with."""

    def __init__(self, request: dict[str, Any] | None = None, **settings: Any) -> None:
        keys = iter(range(1000))
        self.converter = Converter(
            ConverterSettings(**settings), clock=lambda: 1_760_000_000.5, new_key=lambda: f"k{next(keys)}_"
        )
        asked = {"input": "hi", "tools": TOOLS, "stream": True} | (request or {})
        self.call = self.converter.to_chat(json.dumps(asked).encode(), "engine-name")
        self.events = self.converter.stream(self.call)

    def told(self, payloads: Iterable[bytes]) -> bytes:
        """What is written while the engine talks."""
        return b"".join([self.events.add(payload) for payload in payloads])

    def all(self, payloads: Iterable[bytes], tokenized: bytes | None = None) -> bytes:
        return self.told(payloads) + self.events.finish(tokenized)
