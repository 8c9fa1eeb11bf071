"""Tools as the engine knows them: functions, what each stands for, and the kinds that there are."""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType

from local_vllm.errors import RequestError
from local_vllm.protocol.errors import one_of

CALLABLE = ("function", "custom")
TYPES = (*CALLABLE, "namespace")
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
        "programmatic_tool_calling",
    }
)


class Function(Struct, frozen=True):
    name: str
    description: str | UnsetType = UNSET
    parameters: Raw | UnsetType = UNSET
    strict: bool | UnsetType = UNSET


class ChatTool(Struct, frozen=True):
    function: Function
    type: str = "function"


class Callee(Struct, frozen=True):
    """What the engine calls by a name, where that is something else than the function of this name."""

    name: str
    namespace: str | UnsetType = UNSET
    is_custom: bool = False


def name_in_chat(namespace: str | None, name: str) -> str:
    """The name by which the engine knows a tool. Chat's names have no dots."""
    return name if namespace is None else f"{namespace}__{name}"


def check_hosted(kind: str, param: str) -> None:
    if kind not in _HOSTED:
        raise one_of(kind, (*TYPES, *sorted(_HOSTED)), param)


def refusal_of_hosted(kind: str, param: str) -> RequestError:
    return RequestError(
        f"The tool '{kind}' is hosted by OpenAI and not available here.",
        param=param,
        code="unsupported_value",
    )
