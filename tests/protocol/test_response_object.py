"""The engine's answer becomes a response that OpenAI's own types accept."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from local_vllm.errors import UpstreamError
from local_vllm.protocol.converter import Converter
from local_vllm.protocol.settings import ConverterSettings

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
TOOLS = [
    {"type": "function", "name": "f", "description": "does f", "parameters": SCHEMA, "strict": True},
    {"type": "custom", "name": "patch", "format": {"type": "text"}},
]
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def converter(**settings):
    keys = iter(range(1000))
    return Converter(
        ConverterSettings(**settings), clock=lambda: 1_760_000_000.7, new_key=lambda: f"k{next(keys)}_"
    )


def answer(finish_reason="stop", usage=USAGE, **message):
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "org/engine-model",
            "usage": usage,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish_reason,
                    "stop_reason": None,
                    "logprobs": None,
                    "message": {"role": "assistant", "content": None, **message},
                }
            ],
        }
    ).encode()


def chat_call(call_id="c1", name="f", arguments='{"a":"x"}'):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def respond(request=None, settings=None, **message):
    convert = converter(**(settings or {}))
    call = convert.to_chat(json.dumps({"input": "hi", **(request or {})}).encode(), "engine-name")
    body = json.loads(convert.to_response(call, answer(**message)).body)
    Response.model_validate(body, strict=True)
    return body


def test_a_response_has_everything_that_openai_s_schema_has():
    assert respond({"tools": TOOLS}, content="hello", reasoning="why") == {
        "id": "resp_k0_",
        "object": "response",
        "created_at": 1_760_000_000,
        "completed_at": 1_760_000_000,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "model": "org/engine-model",
        "output": [
            {
                "type": "reasoning",
                "id": "rs_k0_0",
                "summary": [],
                "encrypted_content": None,
                "status": "completed",
                "content": [{"type": "reasoning_text", "text": "why"}],
            },
            {
                "type": "message",
                "id": "msg_k0_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}],
            },
        ],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "prompt_cache_retention": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": None,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": TOOLS,
        "top_logprobs": 0,
        "top_p": None,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 11,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 18,
        },
        "user": None,
        "metadata": {},
    }


ECHOED = {
    "instructions": "be brief",
    "temperature": 0.5,
    "top_p": 0.25,
    "max_output_tokens": 9,
    "max_tool_calls": 2,
    "parallel_tool_calls": False,
    "metadata": {"a": "b"},
    "store": False,
    "user": "u",
    "truncation": "auto",
    "prompt_cache_key": "p",
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "flex",
    "top_logprobs": 3,
    "tools": TOOLS,
    "tool_choice": {"type": "function", "name": "f"},
    "reasoning": {"effort": "high", "summary": "auto"},
    "text": {
        "format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "description": None, "strict": True},
        "verbosity": "low",
    },
}


@pytest.mark.parametrize("name", ECHOED)
def test_the_response_says_what_the_request_said(name):
    request = {"tools": TOOLS, name: ECHOED[name]}
    assert respond(request, content="x")[name] == ECHOED[name]


def test_the_sampling_that_is_told_is_the_sampling_that_was_used():
    settings = {"extra_body": {"temperature": 0.3, "top_p": 0.9}, "sampling_overrides": {"temperature": 0.7}}
    body = respond({"temperature": 0.1}, settings, content="x")
    assert (body["temperature"], body["top_p"]) == (0.7, 0.9)


def test_output_text_of_the_openai_types_is_the_text():
    body = respond(content="<think>why</think>first", reasoning=None)
    assert Response.model_validate(body).output_text == "first"


def test_calls_become_items_after_the_text_with_the_engine_s_call_ids():
    body = respond(
        {"tools": TOOLS},
        content="see",
        tool_calls=[chat_call("c1"), chat_call("c2", arguments="")],
        finish_reason="tool_calls",
    )
    assert body["status"] == "completed"
    assert body["output"][1:] == [
        {
            "type": "function_call",
            "id": "fc_k0_1",
            "call_id": "c1",
            "name": "f",
            "arguments": '{"a":"x"}',
            "status": "completed",
        },
        {
            "type": "function_call",
            "id": "fc_k0_2",
            "call_id": "c2",
            "name": "f",
            "arguments": "",
            "status": "completed",
        },
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"input": "a\\nb"}', "a\nb"), ("just text", "just text"), ('{"other": 1}', '{"other": 1}'), ("", "")],
)
def test_a_call_of_a_custom_tool_is_a_custom_tool_call(arguments, expected):
    item = respond({"tools": TOOLS}, tool_calls=[chat_call("c1", "patch", arguments)])["output"][0]
    assert item == {
        "type": "custom_tool_call",
        "id": "ctc_k0_0",
        "call_id": "c1",
        "name": "patch",
        "input": expected,
        "status": "completed",
    }


def test_a_call_without_an_id_gets_one():
    body = respond({"tools": TOOLS}, tool_calls=[{"function": {"name": "f", "arguments": "{}"}}] * 2)
    assert len({item["call_id"] for item in body["output"]}) == 2


@pytest.mark.parametrize(
    ("finish_reason", "status", "reason"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        (None, "completed", None),
        ("repetition", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
        ("abort", "failed", None),
    ],
)
def test_how_the_answer_ended_is_the_status(finish_reason, status, reason):
    body = respond(content="x", finish_reason=finish_reason)
    assert body["status"] == status
    assert body["incomplete_details"] == ({"reason": reason} if reason else None)
    assert (body["completed_at"] is not None) == (status == "completed")
    assert (body["error"] is not None) == (status == "failed")
    assert body["output"][-1]["status"] == ("completed" if status == "completed" else "incomplete")


def test_only_the_last_item_of_a_cut_off_answer_is_incomplete():
    body = respond(content="x", reasoning="y", finish_reason="length")
    assert [item["status"] for item in body["output"]] == ["completed", "incomplete"]


def test_a_refusal_is_a_refusal_part():
    assert respond(refusal="no")["output"][0]["content"] == [{"type": "refusal", "refusal": "no"}]


def test_an_empty_answer_is_an_empty_message():
    assert respond(content="")["output"][0]["content"][0]["text"] == ""


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 3, "completion_tokens": None, "total_tokens": 3}])
def test_counts_that_the_engine_does_not_tell_are_no_error(usage):
    told = respond(content="x", usage=usage)["usage"]
    assert told is None if usage is None else (told["input_tokens"], told["output_tokens"]) == (3, 0)


def test_think_tags_stay_in_the_text_when_no_parser_is_used():
    body = respond(settings={"uses_reasoning_parser": False}, content="<think>a</think>b")
    assert [item["type"] for item in body["output"]] == ["message"]
    body = respond(settings={"uses_reasoning_parser": False}, content="b", reasoning="a")
    assert [item["type"] for item in body["output"]] == ["reasoning", "message"]


@pytest.mark.parametrize(
    ("content", "finish_reason", "kinds"),
    [
        ("hm", "length", ["reasoning"]),
        ("hm", "stop", ["message"]),
        ("hm</think>so", "length", ["reasoning", "message"]),
        ("<think>hm</think>so", "length", ["reasoning", "message"]),
        ("<think>hm", "length", ["reasoning"]),
    ],
)
def test_only_an_answer_cut_off_without_any_tag_is_taken_for_the_template_s_block(
    content, finish_reason, kinds
):
    settings = {"chat_template_opens_reasoning": True}
    body = respond(settings=settings, content=content, finish_reason=finish_reason)
    assert [item["type"] for item in body["output"]] == kinds


def test_dropped_tools_are_named_in_the_metadata_and_not_echoed():
    tools = [{"type": "web_search"}, TOOLS[0], {"type": "code_interpreter", "container": {"type": "auto"}}]
    body = respond({"tools": tools, "metadata": {"mine": "1"}}, content="x")
    assert body["tools"] == [TOOLS[0]]
    assert body["metadata"] == {"mine": "1", "hosted_tools_dropped": "web_search,code_interpreter"}


def test_ids_cannot_be_told_from_the_ids_before_them():
    """An id is all that keeps a stored response from others."""
    ids = set()
    for _ in "ab":
        random.seed(7)
        ids.add(Converter(ConverterSettings()).to_chat(b'{"input":"a"}', "e").asked.response_id)
    assert len(ids) == 2 and all(re.fullmatch("resp_[0-9a-f]{32}", each) for each in ids)


def test_two_responses_have_different_ids():
    convert = Converter(ConverterSettings())
    bodies = [
        json.loads(convert.to_response(convert.to_chat(b'{"input":"a"}', "e"), answer(content="x")).body)
        for _ in "ab"
    ]
    assert bodies[0]["id"] != bodies[1]["id"]
    assert bodies[0]["output"][0]["id"] != bodies[1]["output"][0]["id"]


@pytest.mark.parametrize(
    "raw", [b"", b"<html>", b"{}", b'{"model": "m", "choices": []}', b'{"model":"m","choices":[{}]}']
)
def test_an_answer_that_is_no_completion_is_the_engine_s_fault(raw):
    convert = converter()
    with pytest.raises(UpstreamError) as failed:
        convert.to_response(convert.to_chat(b'{"input":"a"}', "e"), raw)
    assert failed.value.status == 502


# ---- there and back

WORDS = st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=12
).filter(lambda text: text.strip())
PROSE = st.one_of(st.none(), WORDS)


@st.composite
def conversations(draw):
    """Chat messages as a client would have sent them, and what its assistant's turns were."""
    messages, number = [], 0
    for _ in range(draw(st.integers(1, 4))):
        messages.append(
            {"role": draw(st.sampled_from(["user", "system", "developer"])), "content": draw(WORDS)}
        )
        content, reasoning, calls = draw(PROSE), draw(PROSE), draw(st.integers(0, 3))
        if content is None and not calls:
            content = draw(WORDS)
        turn = {"role": "assistant", "content": content}
        if reasoning is not None:
            turn["reasoning"] = reasoning
        names = [draw(st.sampled_from(["f", "patch"])) for _ in range(calls)]
        ids = [f"c{number + n}" for n in range(calls)]
        number += calls
        if calls:
            turn["tool_calls"] = [
                chat_call(call_id, name, '{"input":"a\\n"}' if name == "patch" else draw(WORDS))
                for call_id, name in zip(ids, names, strict=True)
            ]
        messages.append(turn)
        messages += [{"role": "tool", "content": draw(WORDS), "tool_call_id": call_id} for call_id in ids]
    return messages


@given(conversations())
def test_a_conversation_through_the_responses_api_and_back_is_itself(messages):
    convert = converter()
    items, customs = [], set()
    for message in messages:
        if message["role"] == "assistant":
            call = convert.to_chat(json.dumps({"input": "hi", "tools": TOOLS}).encode(), "e")
            output = json.loads(convert.to_response(call, answer(**message)).body)["output"]
            customs |= {item["call_id"] for item in output if item["type"] == "custom_tool_call"}
            items += output
        elif message["role"] == "tool":
            kind = "custom_tool_call_output" if message["tool_call_id"] in customs else "function_call_output"
            items.append({"type": kind, "call_id": message["tool_call_id"], "output": message["content"]})
        else:
            items.append(message)
    call = convert.to_chat(json.dumps({"input": items, "tools": TOOLS}).encode(), "e")
    assert json.loads(call.body)["messages"] == messages
