"""Who decides a chat field: the caller, over metadata, over the server; `sampling_overrides` over all."""

from __future__ import annotations

import json

import pytest

from local_vllm.protocol.converter import Converter
from local_vllm.protocol.precedence import with_lower_limit
from local_vllm.protocol.settings import ConverterSettings
from local_vllm.protocol.vllm_fields import PASSED_THROUGH


def sent(request=None, metadata=None, server=None, kwargs=None, overrides=None, chat=False):
    settings = ConverterSettings(
        extra_body=server, chat_template_kwargs=kwargs, sampling_overrides=overrides, uses_reasoning_parser=False
    )
    body = dict(request or {})
    body |= {"messages": [{"role": "user", "content": "a"}]} if chat else {"input": "a"}
    if metadata is not None:
        body["metadata"] = {name: json.dumps(value) for name, value in metadata.items()}
    converter = Converter(settings)
    convert = converter.chat_passthrough if chat else converter.to_chat
    fields = json.loads(convert(json.dumps(body).encode(), "engine").body)
    assert fields.pop("model") == "engine"
    assert fields.pop("messages") == [{"role": "user", "content": "a"}]
    fields.pop("metadata", None)
    return fields


CASES = [
    (dict(), {}),
    (dict(server={"top_k": 1}), {"top_k": 1}),
    (dict(server={"top_k": 1}, metadata={"extra_body": {"top_k": 2}}), {"top_k": 2}),
    (dict(server={"top_k": 1}, metadata={"extra_body": {"top_k": 2}}, request={"top_k": 3}), {"top_k": 3}),
    (dict(server={"top_k": 1}, request={"top_k": 3}, overrides={"top_k": 4}), {"top_k": 4}),
    (dict(server={"top_k": 1}, request={"top_k": None}), {"top_k": 1}),
    (dict(request={"temperature": 0.5}, overrides={"temperature": 1.0}), {"temperature": 1.0}),
    (dict(server={"seed": 1}, request={"min_p": 0.1}), {"seed": 1, "min_p": 0.1}),
    (dict(server={"model": "other", "stream": True, "n": 4, "messages": []}), {}),
    (dict(metadata={"extra_body": {"model": "other", "stream": True, "n": 4, "messages": []}}), {}),
    # one field, two names
    (dict(server={"max_tokens": 5}), {"max_completion_tokens": 5}),
    (dict(server={"max_tokens": 5}, request={"max_completion_tokens": 6}), {"max_completion_tokens": 6}),
    (dict(server={"max_completion_tokens": 5}, request={"max_tokens": 6}), {"max_completion_tokens": 6}),
    (dict(server={"max_output_tokens": 5}, overrides={"max_tokens": 7}), {"max_completion_tokens": 7}),
    (dict(server={"reasoning": {"effort": "low"}}), {"reasoning_effort": "low"}),
    (dict(server={"reasoning.effort": "low"}), {"reasoning_effort": "low"}),
    (
        dict(server={"reasoning.effort": "low"}, request={"reasoning": {"effort": "high"}}),
        {"reasoning_effort": "high"},
    ),
    # chat_template_kwargs, key by key
    (dict(kwargs={"a": 1, "b": 1}), {"chat_template_kwargs": {"a": 1, "b": 1}}),
    (
        dict(
            server={"chat_template_kwargs": {"a": 0, "z": 0}},
            kwargs={"a": 1, "b": 1, "c": 1, "d": 1},
            metadata={
                "extra_body": {"chat_template_kwargs": {"b": 2, "y": 2}},
                "chat_template_kwargs": {"b": 3, "c": 3},
            },
            request={"chat_template_kwargs": {"c": 4}},
        ),
        {"chat_template_kwargs": {"z": 0, "a": 1, "d": 1, "y": 2, "b": 3, "c": 4}},
    ),
    # structured outputs: the highest layer that constrains the answer decides how
    (
        dict(server={"guided_json": '{"type": "object"}'}),
        {"structured_outputs": {"json": '{"type": "object"}'}},
    ),
    (dict(request={"guided_json": {"type": "object"}}), {"structured_outputs": {"json": {"type": "object"}}}),
    (dict(request={"guided_regex": "a+"}), {"structured_outputs": {"regex": "a+"}}),
    (dict(request={"guided_choice": ["a", "b"]}), {"structured_outputs": {"choice": ["a", "b"]}}),
    (dict(request={"guided_grammar": "root ::= a"}), {"structured_outputs": {"grammar": "root ::= a"}}),
    (
        dict(
            request={
                "guided_json": {},
                "guided_whitespace_pattern": " ",
                "guided_decoding_backend": "outlines",
            }
        ),
        {"structured_outputs": {"json": {}, "whitespace_pattern": " "}},
    ),
    (
        dict(server={"guided_json": {}}, request={"structured_outputs": {"regex": "a"}}),
        {"structured_outputs": {"regex": "a"}},
    ),
    (
        dict(server={"guided_json": {}}, metadata={"extra_body": {"guided_regex": "a"}}),
        {"structured_outputs": {"regex": "a"}},
    ),
    (
        dict(server={"guided_regex": "a"}, request={"response_format": {"type": "json_object"}}),
        {"response_format": {"type": "json_object"}},
    ),
    (
        dict(server={"response_format": {"type": "json_object"}}, request={"guided_regex": "a"}),
        {"structured_outputs": {"regex": "a"}},
    ),
]


@pytest.mark.parametrize("chat", [False, True], ids=["responses", "chat"])
@pytest.mark.parametrize(("given", "expected"), CASES)
def test_the_higher_layer_decides(given, expected, chat):
    assert sent(**given, chat=chat) == expected


@pytest.mark.parametrize(
    ("request_fields", "expected"),
    [
        ({"max_output_tokens": 9, "max_tokens": 1}, {"max_completion_tokens": 9}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"temperature": 1}, {"temperature": 1}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "n",
                        "schema": {"type": "object"},
                        "strict": True,
                    }
                }
            },
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"reasoning": {"effort": "none", "summary": "auto"}}, {"reasoning_effort": "none"}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
    ],
)
def test_openai_s_fields_have_chat_s_names(request_fields, expected):
    assert sent(request_fields) == expected


@pytest.mark.parametrize("limit", [5000, 5000.0, "5000"])
def test_a_limit_is_lowered_however_its_number_is_written(limit):
    body = json.dumps({"max_tokens": limit, "max_completion_tokens": 50}).encode()
    assert json.loads(with_lower_limit(body, 100)) == {"max_tokens": 100, "max_completion_tokens": 50}


@pytest.mark.parametrize("limit", [100, "99", "many", 5000.5, None, [5000]])
def test_a_limit_that_is_low_enough_or_no_number_is_left_to_the_engine(limit):
    assert with_lower_limit(json.dumps({"max_tokens": limit}).encode(), 100) is None


ALIASED = {"max_tokens", "max_completion_tokens", "guided_decoding_backend"}
PLAIN = sorted(name for name in PASSED_THROUGH if not name.startswith("guided_") and name not in ALIASED)


@pytest.mark.parametrize("name", PLAIN)
def test_vllm_s_own_fields_pass_through_byte_for_byte(name):
    body = b'{"input": "a", "%s": {"odd":  [1.50, "\\u00e9"]}}' % name.encode()
    assert (
        b'"%s":{"odd":  [1.50, "\\u00e9"]}' % name.encode()
        in Converter(ConverterSettings()).to_chat(body, "e").body
    )


def test_a_chat_request_keeps_its_messages_stream_and_tools():
    body = {
        "model": "asked",
        "messages": [{"role": "developer", "content": "x", "odd": 1}],
        "stream": True,
        "stream_options": {"include_usage": False},
        "n": 2,
        "tools": [{"type": "function"}],
        "tool_choice": "auto",
        "prompt_cache_key": "k",
    }
    call = Converter(ConverterSettings()).chat_passthrough(json.dumps(body).encode(), "engine")
    assert json.loads(call.body) == body | {"model": "engine"}
    assert (call.stream, call.model_asked, call.session_hint) == (True, "asked", "k")


def test_a_developer_becomes_system_in_a_chat_request_too():
    developer, user = (
        b'{"role": "developer", "content": "\\u0061  b"}',
        b'{"role": "user", "content": "developer"}',
    )
    body = b'{"messages": [%s, %s]}' % (developer, user)
    settings = ConverterSettings(replace_developer_role_with_system=True)
    call = Converter(settings).chat_passthrough(body, "engine")
    assert json.loads(call.body)["messages"] == [
        {"role": "system", "content": "a  b"},
        {"role": "user", "content": "developer"},
    ]


def test_the_answer_to_a_chat_request_goes_back_byte_for_byte():
    converter = Converter(ConverterSettings(return_token_id_information=True))
    call = converter.chat_passthrough(b'{"messages": []}', "engine")
    assert json.loads(call.body) == {
        "model": "engine",
        "messages": [],
        "logprobs": True,
        "return_token_ids": True,
    }
    assert converter.to_response(call, b'{ "anything":  1 }').body == b'{ "anything":  1 }'


def test_the_session_hint_is_the_prompt_cache_key():
    call = Converter(ConverterSettings()).to_chat(
        b'{"input": "a", "prompt_cache_key": "s1", "model": "m"}', "engine"
    )
    assert (call.session_hint, call.model_asked, call.stream) == ("s1", "m", False)
