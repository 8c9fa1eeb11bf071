"""Tools and tool_choice of a Responses request -> chat's. A `custom` tool becomes a function of one string;
tools that only OpenAI hosts are dropped and named, or refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from local_vllm.errors import RequestError
from local_vllm.protocol.errors import missing, one_of
from local_vllm.protocol.json_schema import check_schema
from local_vllm.protocol.request import decode_part

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_HOSTED = frozenset(
    {
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
        "file_search",
        "computer",
        "computer_use",
        "computer_use_preview",
        "code_interpreter",
        "image_generation",
        "mcp",
        "local_shell",
        "shell",
        "apply_patch",
        "tool_search",
        "namespace",
        "programmatic_tool_calling",
    }
)
_OWN = ("function", "custom")
# Tools of more bytes than this are read anew each time rather than remembered.
_LARGE = 128 << 10
_MODES = ("none", "auto", "required")
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


class ToolChoice(Struct):
    """A tool_choice that is an object."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[ToolChoice] | None = None


class Function(Struct, frozen=True):
    name: str
    description: str | UnsetType = UNSET
    parameters: Raw | UnsetType = UNSET
    strict: bool | UnsetType = UNSET


class ChatTool(Struct, frozen=True):
    function: Function
    type: str = "function"


class Toolbox(Struct, frozen=True):
    """What a request's tools come to: for the engine, for the echo in the response, and for reading calls."""

    tools: tuple[ChatTool, ...] = ()
    choice: str | dict[str, Any] | None = None
    custom_names: frozenset[str] = frozenset()
    dropped: tuple[str, ...] = ()
    echo: Raw | list[Raw] = Raw(b"[]")


NO_TOOLS = Toolbox()

_decode_tools = msgspec.json.Decoder(list[Tool] | None).decode
_decode_raw_tools = msgspec.json.Decoder(list[Raw]).decode
_decode_choice = msgspec.json.Decoder(str | ToolChoice | None).decode


def read_tools(tools: Raw | UnsetType, choice: Raw | UnsetType, *, hosted: str) -> Toolbox:
    """`hosted` is `drop` or `refuse`. Raises RequestError naming the tool at fault."""
    if tools is UNSET and choice is UNSET:
        return NO_TOOLS
    given = b"null" if tools is UNSET else bytes(tools)
    chosen = b"null" if choice is UNSET else bytes(choice)
    return (_read if len(given) > _LARGE else _read_once)(given, chosen, hosted)


def _read(tools_json: bytes, choice_json: bytes, hosted: str) -> Toolbox:
    tools, choice = Raw(tools_json), Raw(choice_json)
    given = decode_part(_decode_tools, tools, "tools")
    chosen = decode_part(_decode_choice, choice, "tool_choice")
    if not given and chosen is None:
        return NO_TOOLS
    functions = [_chat_tool(tool, position) for position, tool in enumerate(given or ())]
    dropped = tuple([tool.type for tool, made in zip(given or (), functions, strict=True) if made is None])
    if dropped and hosted == "refuse":
        raise _hosted(dropped[0], f"tools[{functions.index(None)}].type")
    kept = tuple([made for made in functions if made is not None])
    usable, mode = _choose(chosen, kept)
    return Toolbox(
        usable,
        mode if usable else None,
        frozenset([tool.name for tool in given or () if tool.type == "custom" and tool.name]),
        dropped,
        Raw(b"[]") if not given else _echo(tools, functions),
    )


# The same tools come with every request of a conversation, and of a training run.
_read_once = lru_cache(maxsize=256)(_read)


def _echo(tools: Raw, functions: list[ChatTool | None]) -> Raw | list[Raw]:
    if None not in functions:
        return tools
    return [raw for raw, made in zip(_decode_raw_tools(tools), functions, strict=True) if made is not None]


# ---- tools


def _chat_tool(tool: Tool, position: int) -> ChatTool | None:
    """None for a tool that only OpenAI hosts."""
    path = f"tools[{position}]"
    if tool.type not in _OWN:
        _check_hosted(tool.type, f"{path}.type")
        return None
    if tool.name is None:
        raise missing(f"{path}.name")
    if not _NAME.fullmatch(tool.name):
        raise RequestError(
            f"Invalid '{path}.name': expected 1 to 128 letters, digits, '_' and '-', got {tool.name!r}.",
            param=f"{path}.name",
            code="invalid_value",
        )
    if tool.type == "custom":
        return ChatTool(Function(tool.name, _custom_description(tool), _CUSTOM_INPUT))
    return ChatTool(
        Function(
            tool.name,
            UNSET if tool.description is None else tool.description,
            _parameters(tool, path),
            UNSET if tool.strict is None else tool.strict,
        )
    )


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


# ---- tool_choice


def _choose(
    choice: str | ToolChoice | None, tools: tuple[ChatTool, ...]
) -> tuple[tuple[ChatTool, ...], str | dict[str, Any] | None]:
    """The tools that the engine may see, and chat's tool_choice."""
    if choice is None:
        return tools, None
    if isinstance(choice, str):
        return tools, _mode(choice, tools)
    if choice.type == "allowed_tools":
        return _allowed(choice, tools)
    name = _named(choice, tools, "tool_choice")
    return tools, {"type": "function", "function": {"name": name}}


def _mode(choice: str, tools: tuple[ChatTool, ...]) -> str:
    if choice not in _MODES:
        raise one_of(choice, _MODES, "tool_choice")
    if choice == "required" and not tools:
        raise RequestError(
            "'tool_choice' is 'required' but there is no tool that can be called.",
            param="tool_choice",
            code="invalid_value",
        )
    return choice


def _allowed(choice: ToolChoice, tools: tuple[ChatTool, ...]) -> tuple[tuple[ChatTool, ...], str]:
    for name in ("mode", "tools"):
        if getattr(choice, name) is None:
            raise missing(f"tool_choice.{name}")
    named = [
        _named(each, tools, f"tool_choice.tools[{position}]")
        for position, each in enumerate(choice.tools or ())
        if each.type in _OWN
    ]
    usable = tuple([tool for tool in tools if tool.function.name in named])
    return usable, _mode(choice.mode or "auto", usable)


def _named(choice: ToolChoice, tools: tuple[ChatTool, ...], path: str) -> str:
    if choice.type not in _OWN:
        _check_hosted(choice.type, f"{path}.type")
        raise _hosted(choice.type, path)
    if choice.name is None:
        raise missing(f"{path}.name")
    if all(tool.function.name != choice.name for tool in tools):
        raise RequestError(
            f"Tool choice '{choice.name}' not found in 'tools'.", param=path, code="invalid_value"
        )
    return choice.name


def _check_hosted(kind: str, param: str) -> None:
    if kind not in _HOSTED:
        raise one_of(kind, (*_OWN, *sorted(_HOSTED)), param)


def _hosted(kind: str, param: str) -> RequestError:
    return RequestError(
        f"The tool '{kind}' is hosted by OpenAI and not available here.",
        param=param,
        code="unsupported_value",
    )
