"""The tool_choice of a Responses request -> chat's, over the functions that the request's tools come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from local_vllm.errors import RequestError
from local_vllm.protocol.chat_tools import CALLABLE, Callee, ChatTool, check_hosted, refusal_of_hosted
from local_vllm.protocol.errors import missing, one_of

_MODES = ("none", "auto", "required")


class ToolChoice(Struct):
    """A tool_choice that is an object."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[ToolChoice] | None = None


def choose(
    choice: str | ToolChoice | None, tools: tuple[ChatTool, ...], callees: Mapping[str, Callee]
) -> tuple[tuple[ChatTool, ...], str | dict[str, Any] | None]:
    """The tools that the engine may see, and chat's tool_choice."""
    if choice is None:
        return tools, None
    if isinstance(choice, str):
        return tools, _mode(choice, tools)
    if choice.type == "allowed_tools":
        return _allowed(choice, tools, callees)
    name = _named(choice, tools, callees, "tool_choice")
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


def _allowed(
    choice: ToolChoice, tools: tuple[ChatTool, ...], callees: Mapping[str, Callee]
) -> tuple[tuple[ChatTool, ...], str]:
    for name in ("mode", "tools"):
        if getattr(choice, name) is None:
            raise missing(f"tool_choice.{name}")
    named = {
        _named(each, tools, callees, f"tool_choice.tools[{position}]")
        for position, each in enumerate(choice.tools or ())
        if each.type in CALLABLE
    }
    spaces = {each.name for each in choice.tools or () if each.type == "namespace"}
    named |= {name for name, callee in callees.items() if callee.namespace in spaces}
    usable = tuple([tool for tool in tools if tool.function.name in named])
    return usable, _mode(choice.mode or "auto", usable)


def _named(
    choice: ToolChoice, tools: tuple[ChatTool, ...], callees: Mapping[str, Callee], path: str
) -> str:
    """The engine's name of the tool that is meant; a tool of a namespace may go by its own, if no other has it."""
    if choice.type not in CALLABLE:
        check_hosted(choice.type, f"{path}.type")
        raise refusal_of_hosted(choice.type, path)
    if choice.name is None:
        raise missing(f"{path}.name")
    names = [tool.function.name for tool in tools]
    if choice.name in names:
        return choice.name
    meant = [name for name in names if name in callees and callees[name].name == choice.name]
    if len(meant) != 1:
        raise RequestError(
            f"Tool choice '{choice.name}' not found in 'tools'.", param=path, code="invalid_value"
        )
    return meant[0]
