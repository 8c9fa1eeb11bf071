"""The requests that are measured: each as a Responses request, and as the chat request that asks for the same.

A mark in the last message, `[[answer:<kind>:<prompt tokens>:<tokens>:<pace in ms>]]`, tells the stand-in engine what
to answer. How answers are checked is the part of answers.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Api = Literal["responses", "chat"]

SENTENCE = "look through these files, explain what they do in plain words, and name those that should be changed first"
VOCABULARY = 151_000
TOOLS = ("search_files", "read_file", "write_file", "run_tests")
TOKEN_FIELDS = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")
SAMPLING = {"temperature": 1.0, "top_p": 1.0}


@dataclass(frozen=True, slots=True)
class Scenario:
    """`items` are the types that the output must have. With `training` it must have token ids: as many as
    `prompt_tokens` and `tokens` say, any number for 0. `deltas` are the delta events of a stream; 0 is no stream."""

    name: str
    title: str
    request: Mapping[str, Any]
    items: tuple[str, ...] = ("message",)
    training: bool = False
    prompt_tokens: int = 0
    tokens: int = 0
    deltas: int = 0

    def body(self, api: Api, model: str) -> bytes:
        asked = self.request if api == "responses" else _as_chat(self.request, training=self.training)
        return json.dumps({"model": model, **asked}, separators=(",", ":")).encode()


def words(count: int, seed: int) -> str:
    chosen = random.Random(seed)
    return " ".join(chosen.choice(SENTENCE.split()) for _ in range(count))


def mark(kind: str, prompt_tokens: int = 100, tokens: int = 200, pace_ms: int = 0) -> str:
    return f" [[answer:{kind}:{prompt_tokens}:{tokens}:{pace_ms}]]"


def _message(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


def _answered(number: int, text: str, **tokens: Any) -> dict[str, Any]:
    """A message of the assistant as a response had it."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    said = {"type": "message", "role": "assistant", "id": f"msg_{number:04}", "status": "completed"}
    return said | {"content": content} | tokens


def _called(number: int) -> list[dict[str, Any]]:
    """A call of a tool and what it gave."""
    arguments = json.dumps({"path": f"src/package/module_{number}.py", "limit": 100})
    call = {"type": "function_call", "id": f"fc_{number:04}", "call_id": f"call_{number:04}", "name": "read_file"}
    result = {"type": "function_call_output", "call_id": f"call_{number:04}", "output": words(120, 100 + number)}
    return [call | {"status": "completed", "arguments": arguments}, result]


def _tool(number: int, name: str) -> dict[str, Any]:
    kinds = {"pattern": "string", "path": "string", "limit": "integer"}
    properties = {
        field: {"type": kind, "description": words(10, 60 + 10 * number + at)}
        for at, (field, kind) in enumerate(kinds.items())
    }
    parameters = {"type": "object", "properties": properties, "required": ["path"]}
    described = {"name": name, "description": words(25, 50 + number), "parameters": parameters}
    return {"type": "function", "strict": False, **described}


def _one_shot(pace_ms: int = 0, **more: Any) -> dict[str, Any]:
    return {"input": words(60, 1) + mark("text", pace_ms=pace_ms), "max_output_tokens": 256, **SAMPLING, **more}


def _ten_turns() -> dict[str, Any]:
    items = [_message("user", words(60, 2))]
    for number in range(10):
        items += _called(number)
        if number % 3 == 2:
            items += [_answered(number, words(60, 200 + number)), _message("user", words(40, 300 + number))]
    items.append(_message("user", words(30, 3) + mark("tool")))
    return {
        "instructions": words(80, 4),
        "input": items,
        "tools": [_tool(*each) for each in enumerate(TOOLS)],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "max_output_tokens": 1024,
        **SAMPLING,
    }


def _training(prompt_tokens: int, tokens: int) -> dict[str, Any]:
    asked = words(prompt_tokens * 4 // 5, 6) + mark("tokens", prompt_tokens, tokens)
    items = [_message("system", words(60, 5)), _message("user", asked)]
    return {"input": items, "max_output_tokens": tokens, **SAMPLING}


def _training_turns() -> dict[str, Any]:
    """Two earlier turns carry the ids that they were answered with."""
    chosen = random.Random(9)
    items = [_message("user", words(1500, 7))]
    for number, prompt_tokens in enumerate((4000, 6000)):
        tokens = {
            "prompt_token_ids": [chosen.randrange(VOCABULARY) for _ in range(prompt_tokens)],
            "generation_token_ids": [chosen.randrange(VOCABULARY) for _ in range(1000)],
            "generation_log_probs": [-abs(chosen.gauss(0, 1)) for _ in range(1000)],
        }
        items += [_answered(number, words(800, 20 + number), **tokens), _message("user", words(800, 30 + number))]
    items[-1]["content"] += mark("tokens", 8000, 1000)
    return {"input": items, "max_output_tokens": 1000, **SAMPLING}


SHORT = Scenario("short", "one-shot", _one_shot())
CONVERSATION = Scenario("conv", "10 turns with tools", _ten_turns(), ("reasoning", "message", "function_call"))
TRAIN_SMALL = Scenario(
    "train-small", "training 500/200 tokens", _training(500, 200), training=True, prompt_tokens=500, tokens=200
)
TRAIN_LARGE = Scenario(
    "train-large", "training 8000/4000 tokens", _training(8000, 4000), training=True, prompt_tokens=8000, tokens=4000
)
TRAIN_MULTI = Scenario(
    "train-multi", "training, input with token ids", _training_turns(), training=True, prompt_tokens=8000, tokens=1000
)
STREAM = Scenario("stream", "stream, an event at a time", _one_shot(stream=True, pace_ms=10), deltas=160)
BURST = Scenario("short-stream", "stream, all at once", _one_shot(stream=True), deltas=160)

WHOLE = (SHORT, CONVERSATION, TRAIN_SMALL, TRAIN_LARGE, TRAIN_MULTI)
STREAMS = (STREAM, BURST)
SCENARIOS: Mapping[str, Scenario] = MappingProxyType({each.name: each for each in (*WHOLE, *STREAMS)})


def _as_chat(request: Mapping[str, Any], *, training: bool) -> dict[str, Any]:
    items = request["input"]
    messages = [_message("user", items)] if isinstance(items, str) else items
    chat = {"messages": [_chat_message(each) for each in messages], "max_tokens": request["max_output_tokens"]}
    chat |= {name: request[name] for name in SAMPLING if name in request}
    if "instructions" in request:
        chat["messages"].insert(0, {"role": "system", "content": request["instructions"]})
    if "tools" in request:
        chat["tools"] = [_chat_tool(each) for each in request["tools"]]
        chat["tool_choice"] = request["tool_choice"]
    if training:
        chat |= {"logprobs": True, "top_logprobs": 0, "return_tokens_as_token_ids": True, "return_token_ids": True}
    if request.get("stream"):
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    return chat


def _chat_message(item: Mapping[str, Any]) -> dict[str, Any]:
    if item["type"] == "function_call":
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if item["type"] == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
    content = item["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return {"role": item["role"], "content": text} | {name: item[name] for name in TOKEN_FIELDS if name in item}


def _chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {name: tool[name] for name in ("name", "description", "parameters")}}
