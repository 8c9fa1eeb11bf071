"""A wrong request is refused with the dotted name of the field at fault; a right one is not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_vllm.errors import RequestError
from local_vllm.protocol.converter import Converter, error_body, peek_model
from local_vllm.protocol.settings import ConverterSettings

CONVERTER = Converter(ConverterSettings(uses_reasoning_parser=False))
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def refusal(body, converter=CONVERTER):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RequestError) as refused:
        converter.to_chat(raw, "engine")
    assert refused.value.status == 400
    assert refused.value.type == "invalid_request_error"
    assert json.loads(error_body(refused.value)) == {
        "error": {
            "message": str(refused.value),
            "type": refused.value.type,
            "param": refused.value.param,
            "code": refused.value.code,
        }
    }
    return refused.value


def message(content):
    return {"input": [{"role": "user", "content": "a"}, {"role": "user", "content": content}]}


WRONG = [
    ({}, "input"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": ["a"]}, "input[0]"),
    ({"input": "a", "model": 3}, "model"),
    ({"input": "a", "instructions": ["a"]}, "instructions"),
    ({"input": "a", "temperature": "hot"}, "temperature"),
    ({"input": "a", "temperature": 2.5}, "temperature"),
    ({"input": "a", "temperature": -1}, "temperature"),
    ({"input": "a", "temperature": True}, "temperature"),
    ({"input": "a", "top_p": 1.1}, "top_p"),
    ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
    ({"input": "a", "max_output_tokens": -5}, "max_output_tokens"),
    ({"input": "a", "max_output_tokens": 1.5}, "max_output_tokens"),
    ({"input": "a", "max_output_tokens": "many"}, "max_output_tokens"),
    ({"input": "a", "max_tool_calls": 0}, "max_tool_calls"),
    ({"input": "a", "top_logprobs": 21}, "top_logprobs"),
    ({"input": "a", "parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    ({"input": "a", "stream": "yes"}, "stream"),
    ({"input": "a", "store": 1}, "store"),
    ({"input": "a", "truncation": "left"}, "truncation"),
    ({"input": "a", "service_tier": "gold"}, "service_tier"),
    ({"input": "a", "include": ["everything"]}, "include[0]"),
    ({"input": "a", "include": "reasoning.encrypted_content"}, "include"),
    ({"input": "a", "reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"input": "a", "reasoning": "high"}, "reasoning"),
    ({"input": "a", "text": {"verbosity": "chatty"}}, "text.verbosity"),
    ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"input": "a", "text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ({"input": "a", "text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    (
        {"input": "a", "text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}},
        "text.format.name",
    ),
    (
        {"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": 3}}},
        "text.format.schema",
    ),
    (
        {"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "thing"}}}},
        "text.format.schema",
    ),
    (
        {"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": None}}},
        "text.format.schema",
    ),
    ({"input": "a", "metadata": {"a": {"b": "c"}}}, "metadata"),
    ({"input": "a", "metadata": {"a": "x" * 513}}, "metadata.a"),
    ({"input": "a", "metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    ({"input": "a", "metadata": {"extra_body": "no json"}}, "metadata.extra_body"),
    ({"input": "a", "metadata": {"chat_template_kwargs": "[1]"}}, "metadata.chat_template_kwargs"),
    ({"input": "a", "background": True}, "background"),
    ({"input": "a", "previous_response_id": 1}, "previous_response_id"),
    ({"input": "a", "conversation": "conv_1"}, "conversation"),
    ({"input": "a", "prompt": {"id": "p"}}, "prompt"),
    ({"input": "a", "n": 2}, "n"),
    ({"input": [{"type": "message", "content": "a"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
    ({"input": [{"id": "msg_1"}]}, "input[0].id"),
    ({"input": "a", "metadata": {"a": ["b"]}}, "metadata.a"),
    ({"input": "a", "metadata": {"audio_paths": "a.wav"}}, "metadata.audio_paths"),
    ({"input": "a", "metadata": {"audio_data": "AAAA"}}, "metadata.audio_data"),
    ({"input": "a", "metadata": {"audio_data": "data:audio/wav;base64,A", "audio_path": "a"}}, "metadata"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input[0].name"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
    (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]},
        "input[0].arguments",
    ),
    ({"input": [{"type": "custom_tool_call", "call_id": "c", "name": "f"}]}, "input[0].input"),
    ({"input": [{"type": "function_call_output", "output": "a"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
    (message([{"text": "a"}]), "input[1].content[0].type"),
    (message([{"type": "input_text"}]), "input[1].content[0].text"),
    (message([{"type": "input_text", "text": 3}]), "input[1].content[0].text"),
    (
        message([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "a"}]),
        "input[1].content[1].type",
    ),
    (message([{"type": "input_image"}]), "input[1].content[0].image_url"),
    (message([{"type": "input_image", "image_url": {"url": "a"}}]), "input[1].content[0].image_url"),
    (message([{"type": "input_image", "image_url": "cat.png"}]), "input[1].content[0].image_url"),
    (message([{"type": "input_image", "file_id": "file_1"}]), "input[1].content[0].file_id"),
    (
        message([{"type": "input_image", "image_url": "data:,", "detail": "max"}]),
        "input[1].content[0].detail",
    ),
    (message([{"type": "input_file", "file_id": "file_1"}]), "input[1].content[0].type"),
    (
        {"input": [{"role": "assistant", "content": [{"type": "input_text", "text": "a"}]}]},
        "input[0].content[0].type",
    ),
    ({"input": "a", "tools": {"type": "function"}}, "tools"),
    ({"input": "a", "tools": [{"name": "f"}]}, "tools[0].type"),
    ({"input": "a", "tools": [{"type": "function"}]}, "tools[0].name"),
    ({"input": "a", "tools": [FUNCTION, {"type": "function", "name": "a b"}]}, "tools[1].name"),
    ({"input": "a", "tools": [FUNCTION, {"type": "function", "name": 3}]}, "tools[1].name"),
    ({"input": "a", "tools": [{**FUNCTION, "parameters": "none"}]}, "tools[0].parameters"),
    ({"input": "a", "tools": [{**FUNCTION, "strict": "yes"}]}, "tools[0].strict"),
    ({"input": "a", "tools": [{**FUNCTION, "parameters": {"type": "string"}}]}, "tools[0].parameters"),
    ({"input": "a", "tools": [{**FUNCTION, "parameters": {"properties": []}}]}, "tools[0].parameters"),
    ({"input": "a", "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.mode"),
    ({"input": "a", "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools"),
    ({"input": "a", "max_tokens": -1}, "max_tokens"),
    ({"input": "a", "max_completion_tokens": "many"}, "max_completion_tokens"),
    ({"input": "a", "max_tokens": 1.5}, "max_tokens"),
    ({"input": "a", "tools": [{"type": "banana"}]}, "tools[0].type"),
    ({"input": "a", "tools": [FUNCTION], "tool_choice": "always"}, "tool_choice"),
    ({"input": "a", "tools": [FUNCTION], "tool_choice": {"type": "function"}}, "tool_choice.name"),
    ({"input": "a", "tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    ({"input": "a", "tools": [FUNCTION], "tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"input": "a", "tools": [FUNCTION], "tool_choice": {"type": "banana"}}, "tool_choice.type"),
    ({"input": "a", "tool_choice": "required"}, "tool_choice"),
    ({"input": "a", "tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
    (
        {"input": "a", "chat_template_kwargs": {}, "metadata": {"chat_template_kwargs": "{}"}, "top_p": 9},
        "top_p",
    ),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[f"{param}-{n}" for n, (_, param) in enumerate(WRONG)])
def test_the_field_at_fault_is_named(body, param):
    assert refusal(body).param == param


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"hello",
        b"\xff\xfe",
        b'{"input": "\xff"}',
        b'{"input": "a",}',
        b'{"unheard":',
        b'{"input": "\\ud800"}',
        b'{"input": "a", "stop": "\xff"}',
        b'{"input": "a", "top_k": NaN}',
        b'{"input": "a", "tools": [{"type": "function", "name": "f", "parameters": {"a": "\xff"}}]}',
        b'{"input": "a", "wholly_unheard_of": "\xff"}',
        b"[1]",
        b"null",
    ],
)
def test_a_body_that_is_no_json_object_is_refused(raw):
    refusal(raw)


def test_json_that_is_nested_too_deeply_is_refused():
    refusal(b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    refusal(b'{"input": "a", "vllm_xargs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("temprature", "temperature"),
        ("max_output_token", "max_output_tokens"),
        ("tool", "tools"),
        ("instruction", "instructions"),
        ("repetition_penality", "repetition_penalty"),
        ("chat_template_kwarg", "chat_template_kwargs"),
    ],
)
def test_a_misspelled_field_is_refused_with_the_nearest_known_one(name, nearest):
    error = refusal({"input": "a", name: 1})
    assert error.param == name
    assert f"'{nearest}'" in str(error)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning": {"efort": "low"}}, "reasoning.efort"),
        ({"text": {"verbositty": "low"}}, "text.verbositty"),
        ({"text": {"formatt": {"type": "text"}}}, "text.formatt"),
    ],
)
def test_a_field_inside_another_may_be_misspelled_too(fields, param):
    assert refusal({"input": "a", **fields}).param == param


def test_unknown_fields_inside_others_are_ignored_when_they_resemble_none():
    body = {"input": "a", "reasoning": {"effort": "low", "context": "x"}, "text": {"format": {"type": "text", "x": 1}}}
    assert json.loads(CONVERTER.to_chat(json.dumps(body).encode(), "e").body)["reasoning_effort"] == "low"


def test_an_unknown_field_that_resembles_none_is_ignored():
    call = CONVERTER.to_chat(b'{"input": "a", "wholly_unheard_of": {"x": [1]}}', "engine")
    assert json.loads(call.body) == {"model": "engine", "messages": [{"role": "user", "content": "a"}]}


def test_known_fields_that_cannot_be_filled_are_accepted():
    body = {
        "input": "a",
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "store": False,
        "user": "u",
        "safety_identifier": "s",
        "service_tier": "auto",
        "prompt_cache_retention": "24h",
        "truncation": "auto",
        "max_tool_calls": 3,
        "background": False,
        "previous_response_id": None,
        "conversation": None,
        "prompt": None,
        "stream_options": None,
        "moderation": None,
        "context_management": [{"type": "compaction"}],
        "top_logprobs": 2,
    }
    call = CONVERTER.to_chat(json.dumps(body).encode(), "engine")
    chat = json.loads(call.body)
    assert chat == {
        "model": "engine",
        "messages": [{"role": "user", "content": "a"}],
        "logprobs": True,
        "top_logprobs": 2,
    }


@pytest.mark.parametrize(
    "name", ["temperature", "tools", "tool_choice", "text", "reasoning", "metadata", "stream", "top_k"]
)
def test_null_is_the_same_as_absent(name):
    with_null = CONVERTER.to_chat(json.dumps({"input": "a", name: None}).encode(), "engine")
    assert with_null.body == CONVERTER.to_chat(b'{"input": "a"}', "engine").body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "type",
        "role",
        "content",
        "call_id",
        "name",
        "arguments",
        "output",
        "summary",
        "text",
        "image_url",
        "input",
    ]
)
VALUES = JSON | st.sampled_from(
    ["message", "user", "function_call", "function_call_output", "reasoning", "input_text", "c1"]
)
FUZZED_ITEMS = st.lists(
    st.dictionaries(
        NAMES, VALUES | st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=2), max_size=6
    ),
    max_size=4,
)
FUZZED_FIELDS = st.dictionaries(
    st.sampled_from(
        [
            "tools",
            "tool_choice",
            "text",
            "reasoning",
            "metadata",
            "temperature",
            "stop",
            "instructions",
            "guided_json",
            "chat_template_kwargs",
            "max_tokens",
            "return_token_ids",
            "response_format",
        ]
    ),
    JSON | st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=2),
    max_size=4,
)


@given(FUZZED_ITEMS | JSON, FUZZED_FIELDS)
def test_any_request_is_converted_or_refused_and_nothing_else(items, fields):
    body = json.dumps({"input": items, **fields}).encode()
    try:
        call = CONVERTER.to_chat(body, "engine")
    except RequestError as refused:
        assert refused.status == 400
    else:
        assert json.loads(call.body)["model"] == "engine"


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_of_a_chat_request_is_converted_or_refused_and_nothing_else(body):
    for convert in (CONVERTER.to_chat, CONVERTER.chat_passthrough):
        try:
            convert(body, "engine")
        except RequestError as refused:
            assert refused.status == 400


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"a/b","input":[1]}', "a/b"),
        (b' { "model" : "a" , "x": 1}', "a"),
        (b'{"input": "x", "model": "a"}', "a"),
        (b'{"model": "\\u0061\\"b"}', 'a"b'),
        ('{"model": "modèle"}'.encode(), "modèle"),
        (b'{"input": "x"}', None),
        (b'{"model": null}', None),
    ],
)
def test_the_model_of_a_request_can_be_peeked_at(body, model):
    assert peek_model(body) == model


@pytest.mark.parametrize("body", [b"", b"[]", b"nope", b'{"model": 3}', b'{"input": "a"'])
def test_peeking_refuses_what_is_no_request(body):
    with pytest.raises(RequestError):
        peek_model(body)
