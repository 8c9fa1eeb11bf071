"""Tools and tool_choice of a Responses request reach the engine, and what cannot is said."""

from __future__ import annotations

import json

import pytest

from local_vllm.errors import RequestError
from local_vllm.protocol import tools as protocol_tools
from local_vllm.protocol.converter import Converter
from local_vllm.protocol.settings import ConverterSettings

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
F = {"type": "function", "name": "f", "description": "does f", "parameters": SCHEMA, "strict": True}
G = {"type": "function", "name": "g"}
CUSTOM = {"type": "custom", "name": "patch", "description": "patches"}
WEB = {"type": "web_search", "search_context_size": "low"}
CHAT_F = {
    "type": "function",
    "function": {"name": "f", "description": "does f", "parameters": SCHEMA, "strict": True},
}
CHAT_G = {"type": "function", "function": {"name": "g"}}


def sent(tools, choice=None, **settings):
    body = {"input": "a", "tools": tools, "tool_choice": choice}
    return json.loads(Converter(ConverterSettings(**settings)).to_chat(json.dumps(body).encode(), "e").body)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, {"tools": [CHAT_F, CHAT_G]}),
        ("auto", {"tools": [CHAT_F, CHAT_G], "tool_choice": "auto"}),
        ("none", {"tools": [CHAT_F, CHAT_G], "tool_choice": "none"}),
        ("required", {"tools": [CHAT_F, CHAT_G], "tool_choice": "required"}),
        (
            {"type": "function", "name": "g"},
            {"tools": [CHAT_F, CHAT_G], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]},
            {"tools": [CHAT_G], "tool_choice": "required"},
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            {"tools": [CHAT_F], "tool_choice": "auto"},
        ),
    ],
)
def test_every_shape_of_tool_choice_reaches_the_engine(choice, expected):
    chat = sent([F, G], choice)
    assert {name: chat[name] for name in ("tools", "tool_choice") if name in chat} == expected


@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_no_tools_means_no_tool_fields(choice):
    assert sent([], choice, uses_reasoning_parser=False).keys() == {"model", "messages"}


def test_a_custom_tool_is_a_function_of_one_string():
    function = sent([CUSTOM], {"type": "custom", "name": "patch"})["tools"][0]["function"]
    assert function["name"] == "patch"
    assert function["parameters"]["required"] == ["input"]
    assert function["parameters"]["properties"] == {"input": {"type": "string"}}


def test_the_grammar_of_a_custom_tool_is_told_to_the_model():
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: WORD"}
    description = sent([CUSTOM | {"format": grammar}])["tools"][0]["function"]["description"]
    assert "patches" in description and "lark" in description and "start: WORD" in description


def test_a_hosted_tool_is_left_out():
    assert sent([WEB, F])["tools"] == [CHAT_F]
    assert "tools" not in sent([WEB], "auto")


@pytest.mark.parametrize(
    "choice", [WEB | {"type": "web_search_preview"}, {"type": "mcp", "server_label": "x"}]
)
def test_a_hosted_tool_that_is_forced_is_refused_by_name(choice):
    with pytest.raises(RequestError, match=choice["type"]):
        sent([WEB, F], choice)


def test_hosted_tools_can_be_refused_altogether():
    with pytest.raises(RequestError, match="web_search") as refused:
        sent([F, WEB], hosted_tools="refuse")
    assert refused.value.param == "tools[1].type"


def test_only_tools_and_choices_of_a_usual_size_are_remembered():
    protocol_tools._read_once.cache_clear()
    for size, remembered in ((10, 1), (200_000, 1), (20, 2)):
        allowed = [{"type": "function", "name": "f", "x": "y" * size}]
        sent([F], {"type": "allowed_tools", "mode": "auto", "tools": allowed})
        assert protocol_tools._read_once.cache_info().currsize == remembered
