"""Tools of a Responses request -> chat's. A `custom` tool becomes a function of one string, a `namespace` the
functions in it, each under a name of both; tools that only OpenAI hosts are dropped and named, or refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from local_vllm.errors import RequestError
from local_vllm.protocol.chat_tools import (
    CALLABLE,
    Callee,
    ChatTool,
    Function,
    check_hosted,
    name_in_chat,
    refusal_of_hosted,
)
from local_vllm.protocol.errors import missing, one_of
from local_vllm.protocol.json_schema import check_schema
from local_vllm.protocol.request import decode_part
from local_vllm.protocol.tool_choice import ToolChoice, choose

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
# Tools and choices of more bytes than this together are read anew each time rather than remembered.
_LARGE = 128 << 10
_CUSTOM_INPUT = Raw(
    b'{"type":"object","properties":{"input":{"type":"string"}},'
    b'"required":["input"],"additionalProperties":false}'
)


class Tool(Struct):
    """Any tool of a request; which fields it needs follows from `type`."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: Raw | UnsetType = UNSET
    strict: bool | None = None
    format: dict[str, Any] | None = None
    tools: list[Tool] | None = None


class Toolbox(Struct, frozen=True):
    """What a request's tools come to: for the engine, for the echo in the response, and for reading calls."""

    tools: tuple[ChatTool, ...] = ()
    choice: str | dict[str, Any] | None = None
    callees: Mapping[str, Callee] = {}
    dropped: tuple[str, ...] = ()
    echo: Raw | list[Raw] = Raw(b"[]")


NO_TOOLS = Toolbox()

# What one tool comes to: functions of the engine, each with what it stands for.
_Functions = list[tuple[ChatTool, Callee | None]]

_decode_tools = msgspec.json.Decoder(list[Tool] | None).decode
_decode_raw_tools = msgspec.json.Decoder(list[Raw]).decode
_decode_choice = msgspec.json.Decoder(str | ToolChoice | None).decode


def read_tools(tools: Raw | UnsetType, choice: Raw | UnsetType, *, hosted: str) -> Toolbox:
    """`hosted` is `drop` or `refuse`. Raises RequestError naming the tool at fault."""
    if tools is UNSET and choice is UNSET:
        return NO_TOOLS
    given = b"null" if tools is UNSET else bytes(tools)
    chosen = b"null" if choice is UNSET else bytes(choice)
    return (_read if len(given) + len(chosen) > _LARGE else _read_once)(given, chosen, hosted)


def _read(tools_json: bytes, choice_json: bytes, hosted: str) -> Toolbox:
    tools, choice = Raw(tools_json), Raw(choice_json)
    given = decode_part(_decode_tools, tools, "tools")
    chosen = decode_part(_decode_choice, choice, "tool_choice")
    if not given and chosen is None:
        return NO_TOOLS
    functions = [_functions(tool, f"tools[{position}]") for position, tool in enumerate(given or ())]
    dropped = tuple([tool.type for tool, made in zip(given or (), functions, strict=True) if made is None])
    if dropped and hosted == "refuse":
        raise refusal_of_hosted(dropped[0], f"tools[{functions.index(None)}].type")
    named = [function for made in functions for function in made or ()]
    _check_distinct(named)
    callees = {tool.function.name: callee for tool, callee in named if callee is not None}
    usable, mode = choose(chosen, tuple([tool for tool, _ in named]), callees)
    return Toolbox(
        usable,
        mode if usable else None,
        callees,
        dropped,
        Raw(b"[]") if not given else _echo(tools, functions),
    )


# The same tools come with every request of a conversation, and of a training run.
_read_once = lru_cache(maxsize=256)(_read)


def _echo(tools: Raw, functions: Sequence[_Functions | None]) -> Raw | list[Raw]:
    if None not in functions:
        return tools
    return [raw for raw, made in zip(_decode_raw_tools(tools), functions, strict=True) if made is not None]


def _functions(tool: Tool, path: str) -> _Functions | None:
    """None for a tool that only OpenAI hosts."""
    if tool.type == "namespace":
        return _functions_of_namespace(tool, path)
    if tool.type not in CALLABLE:
        check_hosted(tool.type, f"{path}.type")
        return None
    return [_function(tool, path)]


def _functions_of_namespace(namespace: Tool, path: str) -> _Functions:
    _check_name(namespace.name, path)
    if namespace.tools is None:
        raise missing(f"{path}.tools")
    functions = []
    for position, tool in enumerate(namespace.tools):
        where = f"{path}.tools[{position}]"
        if tool.type not in CALLABLE:
            raise one_of(tool.type, CALLABLE, f"{where}.type")
        functions.append(_function(tool, where, namespace.name))
    return functions


def _function(tool: Tool, path: str, namespace: str | None = None) -> tuple[ChatTool, Callee | None]:
    own_name = _check_name(tool.name, path)
    name = name_in_chat(namespace, own_name)
    _check_name(name, path)
    is_custom = tool.type == "custom"
    callee = None
    if is_custom or namespace is not None:
        callee = Callee(own_name, UNSET if namespace is None else namespace, is_custom)
    if is_custom:
        return ChatTool(Function(name, _custom_description(tool), _CUSTOM_INPUT)), callee
    function = Function(
        name,
        UNSET if tool.description is None else tool.description,
        _parameters(tool, path),
        UNSET if tool.strict is None else tool.strict,
    )
    return ChatTool(function), callee


def _check_distinct(named: _Functions) -> None:
    """A tool of a namespace must not meet another under the name that the engine knows."""
    names = Counter([tool.function.name for tool, _ in named])
    for tool, callee in named:
        name = tool.function.name
        if callee is not None and callee.namespace is not UNSET and names[name] > 1:
            raise RequestError(
                f"Two of 'tools' come to the name {name!r}: rename one, or the namespace {callee.namespace!r}.",
                param="tools",
                code="invalid_value",
            )


def _check_name(name: str | None, path: str) -> str:
    if name is None:
        raise missing(f"{path}.name")
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"Invalid '{path}.name': expected 1 to 128 letters, digits, '_' and '-', got {name!r}.",
            param=f"{path}.name",
            code="invalid_value",
        )
    return name


def _parameters(tool: Tool, path: str) -> Raw | UnsetType:
    parameters = tool.parameters
    if parameters is UNSET:
        return UNSET
    first = bytes(memoryview(parameters)[:1])
    if first == b"n":
        return UNSET
    param = f"{path}.parameters"
    if first != b"{":
        raise RequestError(
            f"Invalid type for '{param}': expected a JSON schema (an object).", param=param, code="invalid_type"
        )
    check_schema(parameters, param, code="invalid_function_parameters", is_object=True)
    return parameters


def _custom_description(tool: Tool) -> str | UnsetType:
    """A grammar cannot be enforced through a function's schema, so the model is told about it."""
    grammar = (tool.format or {}).get("definition")
    if not grammar:
        return UNSET if tool.description is None else tool.description
    syntax = (tool.format or {}).get("syntax", "")
    return f"{tool.description or ''}\n\n`input` has to match this {syntax} grammar:\n{grammar}".strip()
