"""Tools that come in a namespace, as Codex sends those of MCP servers: the engine sees functions, clients do not."""

from __future__ import annotations

import json

import pytest
from chat_stream import Conversion, call_piece, stream_of
from openai.types.responses import ResponseFunctionToolCall

from local_vllm.errors import RequestError
from local_vllm.protocol.converter import Converter
from local_vllm.protocol.settings import ConverterSettings

SCHEMA = {"type": "object", "properties": {"id": {"type": "string"}}}
FIND = {"type": "function", "name": "find", "description": "Finds.", "parameters": SCHEMA}
NOTE = {"type": "custom", "name": "note"}
CRM = {"type": "namespace", "name": "crm", "description": "Customers", "tools": [FIND, NOTE]}
PLAIN = {"type": "function", "name": "plain"}


def converted(input="a", tools=(CRM, PLAIN), **fields):
    body = {"input": input, "tools": list(tools)} | fields
    return Converter(ConverterSettings()).to_chat(json.dumps(body).encode(), "e")


def sent(**fields):
    return json.loads(converted(**fields).body)


def test_the_engine_sees_one_function_for_each_tool_of_a_namespace() -> None:
    functions = {tool["function"]["name"]: tool["function"] for tool in sent()["tools"]}
    assert list(functions) == ["crm__find", "crm__note", "plain"]
    assert functions["crm__find"] == {"name": "crm__find", "description": "Finds.", "parameters": SCHEMA}


def test_a_call_comes_back_under_its_own_name_with_its_namespace() -> None:
    call = converted()
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "crm__find", "arguments": '{"id":"7"}'}},
        {"id": "c2", "type": "function", "function": {"name": "crm__note", "arguments": '{"input":"hi"}'}},
        {"id": "c3", "type": "function", "function": {"name": "plain", "arguments": "{}"}},
    ]
    choice = {"index": 0, "message": {"role": "assistant", "tool_calls": calls}, "finish_reason": "tool_calls"}
    chat = {"id": "1", "object": "chat.completion", "created": 1, "model": "e", "choices": [choice]}
    answer = json.loads(Converter(ConverterSettings()).to_response(call, json.dumps(chat).encode()).body)
    told = [(item["type"], item.get("namespace"), item["name"]) for item in answer["output"]]
    assert told == [
        ("function_call", "crm", "find"), ("custom_tool_call", "crm", "note"), ("function_call", None, "plain")
    ]  # fmt: skip
    assert ResponseFunctionToolCall.model_validate(answer["output"][0]).namespace == "crm"
    assert answer["tools"] == [CRM, PLAIN]


def test_a_streamed_call_has_its_namespace_from_the_first_event() -> None:
    told = Conversion({"tools": [CRM]}).all(stream_of(call_piece(0, "{}", "crm__find"), finish_reason="tool_calls"))
    events = [json.loads(line[6:]) for line in told.decode().splitlines() if line.startswith("data: ")]
    items = [event["item"] for event in events if event["type"].startswith("response.output_item")]
    assert [(item["namespace"], item["name"]) for item in items] == [("crm", "find")] * 2


def test_a_call_in_the_history_has_the_name_that_the_engine_knows() -> None:
    history = [
        {"type": "function_call", "call_id": "c1", "namespace": "crm", "name": "find", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "found"},
    ]
    (call,) = sent(input=history)["messages"][0]["tool_calls"]
    assert call["function"]["name"] == "crm__find"


@pytest.mark.parametrize("name", ["find", "crm__find"])
def test_a_tool_of_a_namespace_can_be_chosen(name: str) -> None:
    chosen = sent(tool_choice={"type": "function", "name": name})["tool_choice"]
    assert chosen == {"type": "function", "function": {"name": "crm__find"}}


def test_a_whole_namespace_can_be_allowed() -> None:
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "namespace", "name": "crm"}]}
    assert [tool["function"]["name"] for tool in sent(tool_choice=allowed)["tools"]] == ["crm__find", "crm__note"]


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "namespace", "tools": []}, "tools[0].name"),
        ({"type": "namespace", "name": "crm"}, "tools[0].tools"),
        (CRM | {"tools": [{"type": "web_search"}]}, "tools[0].tools[0].type"),
        (CRM | {"tools": [FIND | {"name": "no good"}]}, "tools[0].tools[0].name"),
        (CRM | {"tools": [FIND | {"parameters": 3}]}, "tools[0].tools[0].parameters"),
        (CRM | {"tools": [FIND], "name": "n" * 127}, "tools[0].tools[0].name"),
    ],
)
def test_a_namespace_that_is_none_is_refused(tool: dict, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        sent(tools=[tool])
    assert refused.value.param == param


@pytest.mark.parametrize(
    "other",
    [
        {"type": "function", "name": "crm__find"},
        {"type": "namespace", "name": "crm", "tools": [FIND]},
    ],
)
def test_tools_that_the_engine_could_not_tell_apart_are_refused(other: dict) -> None:
    with pytest.raises(RequestError, match="Two of 'tools' come to the name 'crm__find'"):
        sent(tools=[CRM, other])
