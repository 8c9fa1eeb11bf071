"""Tools: async methods marked with `@tool`, what a model is told of them, and how it calls one.

Whatever a model does wrong, it is told so in a sentence and goes on; a tool that raises is told likewise.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NotRequired, TypeVar, get_type_hints, overload

import msgspec
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python
from typing_extensions import TypedDict

from local_vllm.environments.docstrings import described
from local_vllm.environments.failures import NOT_FOR_THE_MODEL, ToolError, logger, told
from local_vllm.environments.schemas import Schema, can_be_strict, schema_of

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])

TOOL_TIMEOUT_S = 600.0
# The one parameter of a tool that the model is not told of.
SESSION = "session"
# What has a route of its own at a resources server, or another meaning.
_TAKEN = ("seed_session", "verify", "tools", "health", "setup", "teardown")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MARK = "__local_vllm_tool__"
_SHOWN_PROBLEMS = 8


@dataclass(frozen=True, slots=True)
class Mark:
    """That a method is a tool, and how long one call of it may take."""

    timeout_s: float


@overload
def tool(method: Method) -> Method: ...


@overload
def tool(*, timeout_s: float = TOOL_TIMEOUT_S) -> Callable[[Method], Method]: ...


def tool(method: Method | None = None, *, timeout_s: float = TOOL_TIMEOUT_S) -> Any:
    """Offer an async method to the model: `@tool`, or `@tool(timeout_s=30)`.

    Its docstring and the types of its parameters are what the model is told. A parameter called `session`
    gets the rollout's session instead.
    """

    def marked(method: Method) -> Method:
        setattr(method, _MARK, Mark(timeout_s))
        return method

    return marked if method is None else marked(method)


@dataclass(frozen=True, slots=True)
class Result:
    """What a call came to, as `text` for the model: the tool's own words, JSON, or what went wrong."""

    text: str
    kind: Literal["text", "json", "error"]


class Tool:
    """One tool of a class of resources servers. Raises TypeError for a method that cannot be one."""

    def __init__(self, name: str, method: Callable[..., Awaitable[Any]]) -> None:
        self.name = name
        self._method = method
        self._timeout_s: float = getattr(method, _MARK).timeout_s
        parameters = _parameters(name, method)
        self.takes_session = parameters.pop(SESSION, None) is not None
        self._parameters = parameters
        self._adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(_arguments_type(name, method, parameters))
        self._raised: set[str] = set()

    @cached_property
    def parameters(self) -> Schema:
        """The JSON schema of the arguments."""
        defaults = {
            name: to_jsonable_python(each.default)
            for name, each in self._parameters.items()
            if each.default is not each.empty
        }
        return schema_of(self._adapter, described(self._method.__doc__).arguments, defaults)

    @cached_property
    def definition(self) -> dict[str, Any]:
        """The tool as a Responses request has it."""
        return {
            "type": "function",
            "name": self.name,
            "description": described(self._method.__doc__).text,
            "parameters": self.parameters,
            "strict": can_be_strict(self.parameters),
        }

    async def call(self, server: object, arguments: str | bytes, session: Any) -> Result:
        """Call the method of `server` with arguments as a model wrote them. Raises NOT_FOR_THE_MODEL."""
        try:
            given = self._adapter.validate_json(arguments.strip() or "{}", strict=True)
        except ValidationError as problem:
            return Result(self._misfit(problem), "error")
        if self.takes_session:
            given[SESSION] = session
        return await self._called(server, given)

    async def _called(self, server: object, given: dict[str, Any]) -> Result:
        deadline = asyncio.timeout(self._timeout_s)
        try:
            async with deadline:
                return _result(await self._method(server, **given))
        except NOT_FOR_THE_MODEL:
            raise
        except asyncio.CancelledError as error:
            # What the tool waited for may have been cancelled, and not the rollout.
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            return self._failed(error)
        except Exception as error:
            if deadline.expired():
                return Result(f"Error: {self.name} took longer than {self._timeout_s:g} s.", "error")
            return self._failed(error)

    def _failed(self, error: BaseException) -> Result:
        self._log(error)
        what = str(error) if isinstance(error, ToolError) else f"{self.name} failed: {told(error)}"
        return Result(_encodable(f"Error: {what}"), "error")

    def _misfit(self, problem: ValidationError) -> str:
        problems = problem.errors(include_url=False, include_context=False)
        listed = "; ".join(map(_shown, problems[:_SHOWN_PROBLEMS]))
        expected = msgspec.json.encode(self.parameters).decode()
        return (
            f"Error: {self.name} was not called, since its arguments do not fit: {listed}. "
            f"Expected a JSON object of this schema: {expected}"
        )

    def _log(self, error: BaseException) -> None:
        """A traceback for the first of a kind; thousands of rollouts may run into the same one."""
        kind = type(error).__name__
        if isinstance(error, ToolError):
            return
        if kind in self._raised:
            logger.debug("The tool %s raised %s", self.name, told(error))
            return
        self._raised.add(kind)
        logger.warning("The tool %s raised %s; the model was told", self.name, kind, exc_info=error)


def tools_of(kind: type) -> dict[str, Tool]:
    """The tools of a class by name, in the order of their definition. Raises TypeError."""
    methods: dict[str, Any] = {}
    for ancestor in reversed(kind.__mro__):
        for name, value in vars(ancestor).items():
            if name in methods or hasattr(value, _MARK):
                methods[name] = value
    return {name: Tool(name, method) for name, method in methods.items() if hasattr(method, _MARK)}


def unknown_tool(name: str, known: Sequence[str]) -> Result:
    """What a model is told that calls a tool which the environment does not have."""
    listed = ", ".join(known) or "none"
    return Result(f"Error: there is no tool {name!r} here. The tools are: {listed}.", "error")


def _parameters(name: str, method: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters after `self`; raises TypeError for what no JSON object of arguments can say."""
    if not inspect.iscoroutinefunction(method):
        raise TypeError(f"The tool {name} is no async method: write `async def {name}`")
    if name in _TAKEN or not _NAME.fullmatch(name):
        raise TypeError(f"A tool cannot be called {name}: {', '.join(_TAKEN)} are taken; rename it")
    parameters = dict(list(inspect.signature(method).parameters.items())[1:])
    for each in parameters.values():
        if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            raise TypeError(
                f"The tool {name} takes {each}: give each argument a name and a type of its own"
            )
        if each.annotation is each.empty and each.name != SESSION:
            raise TypeError(f"The argument {each.name} of the tool {name} has no type: annotate it")
    return parameters


def _arguments_type(
    name: str, method: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]
) -> Any:
    """A closed dict of the arguments; one that was not given is absent, and so gets the method's default."""
    hints = get_type_hints(method, include_extras=True)
    fields = {
        each: hints[each] if parameter.default is parameter.empty else NotRequired[hints[each]]
        for each, parameter in parameters.items()
    }
    make: Any = TypedDict
    kind = make(f"{name}_arguments", fields)
    kind.__pydantic_config__ = ConfigDict(extra="forbid")
    return kind


def _result(answer: Any) -> Result:
    """A tool's answer as the model reads it: text as it is, anything else as JSON."""
    if isinstance(answer, str):
        return Result(_encodable(answer), "text")
    try:
        return Result(to_json(answer).decode(), "json")
    except PydanticSerializationError as problem:
        raise TypeError(f"the answer is no JSON ({problem})") from problem


def _encodable(text: str) -> str:
    """Half of a surrogate pair, as a text that was cut in the middle of one has it, becomes a question mark."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _shown(problem: Mapping[str, Any]) -> str:
    where = ".".join(map(str, problem["loc"]))
    found = "" if problem["type"] in ("missing", "json_invalid") else f", got {_short(problem['input'])}"
    return f"{where}: {problem['msg']}{found}" if where else f"{problem['msg']}{found}"


def _short(value: Any) -> str:
    text = to_json(value, fallback=str).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."
