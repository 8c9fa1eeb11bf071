"""What is suspicious about an answer, in the words of the vLLM documents' troubleshooting, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from local_vllm.protocol import Converter
from local_vllm.protocol.settings import ConverterSettings

TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}]
RAW_CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
NAMED = {"type": "function", "id": "call_1", "function": {"name": "f", "arguments": "{}"}}


def whole(message: dict[str, Any], reason: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": reason}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps({"id": "c", "model": "m", "created": 1, "choices": [choice], "usage": usage}).encode()


def doubts(
    message: dict[str, Any], *, stream: bool, reason: str = "stop", settings: dict[str, Any] | None = None, **fields: Any
) -> list[tuple[str, str]]:
    converter = Converter(ConverterSettings(**(settings or {})))
    call = converter.to_chat(json.dumps({"input": "Hi", "stream": stream} | fields).encode(), "m")
    if not stream:
        found = converter.to_response(call, whole(message, reason)).doubts
    else:
        events = converter.stream(call)
        calls = [{"index": number, **call} for number, call in enumerate(message.get("tool_calls", ()))]
        choice = {"index": 0, "delta": message | {"tool_calls": calls}, "finish_reason": reason}
        events.add(json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode())
        events.finish()
        found = events.doubts
    return [(doubt.about, doubt.message) for doubt in found]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("message", "asked", "about", "told"),
    [
        ({"content": RAW_CALL}, {"tools": TOOLS}, "tools", "Tool call parsing failed: the text of an answer has <tool_call>"),
        ({"content": "[TOOL_CALLS] f"}, {"tools": TOOLS}, "tools", "Verify that the engine is started with --enable-auto"),
        ({"content": "4"}, {"reasoning": {"effort": "high"}}, "reasoning", "Expected reasoning but got raw content"),
        (
            {"content": "<think>hm</think>4"},
            {"settings": {"uses_reasoning_parser": False}},
            "reasoning",
            "Verify uses_reasoning_parser: true",
        ),
    ],
    ids=["calls in the text", "calls of another model", "no reasoning", "tags in the text"],
)
def test_an_answer_that_a_parser_should_have_read_is_suspicious(stream, message, asked, about, told):
    ((kind, text),) = doubts(message, stream=stream, **asked)
    assert kind == about
    assert told in text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("message", "asked"),
    [
        ({"content": "plain"}, {"tools": TOOLS}),
        ({"content": RAW_CALL}, {}),
        ({"content": RAW_CALL, "tool_calls": [NAMED]}, {"tools": TOOLS}),
        ({"content": RAW_CALL}, {"tools": TOOLS, "reason": "length"}),
        ({"content": "4"}, {"reasoning": {"effort": "none"}}),
        ({"content": "4", "reasoning": "2+2"}, {"reasoning": {"effort": "high"}}),
        ({"content": "<think>hm</think>4"}, {"reasoning": {"effort": "high"}}),
        ({"content": "4"}, {"reasoning": {"effort": "high"}, "reason": "length"}),
        ({"tool_calls": [NAMED]}, {"reasoning": {"effort": "high"}, "tools": TOOLS}),
        ({"content": "4"}, {"settings": {"uses_reasoning_parser": False}}),
    ],
)
def test_an_answer_as_it_should_be_is_not(stream, message, asked):
    assert doubts(message, stream=stream, **asked) == []
