"""What a model is told of typed methods, and what it is told when it calls them wrongly."""

from __future__ import annotations

import asyncio
import json
import logging
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from local_vllm.environments import ToolError, tool
from local_vllm.environments.tools import tools_of


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    x: int
    title: str


class Toolbox:
    """One method of every sort."""

    @tool
    async def plain(self, city: str, days: int) -> str:
        """The weather.

        In two paragraphs.

        Args:
            city: Name of the city,
                in English.
            days (int): How many.

        Returns:
            Not for the model.
        """
        return f"{city} {days}"

    @tool
    async def optional(self, city: str, unit: Literal["c", "f"] = "c") -> dict[str, str]:
        return {"city": city, "unit": unit}

    @tool
    async def nested(self, points: list[Point], *, colour: Colour) -> list[Any]:
        return [points, colour]

    @tool
    async def limited(
        self, share: Annotated[float, Field(ge=0, le=1, description="of the whole")]
    ) -> float:
        return share

    @tool
    async def free(self, table: dict[str, int]) -> int:
        return sum(table.values())

    @tool
    async def nothing(self) -> None:
        return None

    @tool
    async def with_session(self, word: str, session: list[str]) -> int:
        session.append(word)
        return len(session)

    @tool
    async def schema(self, json: str, copy: int, model_config: bool) -> str:
        return f"{json}{copy}{model_config}"

    @tool
    async def broken(self) -> None:
        raise ZeroDivisionError("by zero\nin two lines")

    @tool
    async def choosy(self) -> None:
        raise ToolError("Ask for something else.")

    @tool
    async def unsayable(self) -> object:
        return object()

    @tool(timeout_s=0.02)
    async def slow(self) -> None:
        await asyncio.sleep(5)

    async def no_tool(self) -> None: ...


TOOLS = tools_of(Toolbox)


async def call(name: str, arguments: Any, session: Any = None) -> Any:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return await TOOLS[name].call(Toolbox(), written, session)


def test_the_tools_are_the_marked_methods_in_the_order_of_their_definition() -> None:
    assert list(TOOLS)[:3] == ["plain", "optional", "nested"]
    assert "no_tool" not in TOOLS


def test_a_definition_is_an_openai_function_tool_made_of_signature_and_docstring() -> None:
    assert TOOLS["plain"].definition == {
        "type": "function",
        "name": "plain",
        "description": "The weather.\n\nIn two paragraphs.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city, in English."},
                "days": {"type": "integer", "description": "How many."},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
        "strict": True,
    }


@pytest.mark.parametrize(
    ("name", "strict"),
    [("plain", True), ("optional", False), ("nested", True), ("free", False), ("nothing", True)],
)
def test_a_tool_is_strict_where_all_its_objects_are_closed_and_all_is_required(
    name: str, strict: bool
) -> None:
    assert TOOLS[name].definition["strict"] is strict


def test_a_default_is_told_and_not_required() -> None:
    parameters = TOOLS["optional"].parameters
    assert parameters["required"] == ["city"]
    assert parameters["properties"]["unit"]["default"] == "c"


def test_objects_inside_are_closed_and_a_property_called_title_is_kept() -> None:
    point = TOOLS["nested"].parameters["$defs"]["Point"]
    assert point["additionalProperties"] is False
    assert set(point["properties"]) == {"x", "title"}
    assert "title" not in point


def test_a_description_in_the_type_is_told() -> None:
    share = TOOLS["limited"].parameters["properties"]["share"]
    assert share == {"type": "number", "minimum": 0, "maximum": 1, "description": "of the whole"}


def test_the_session_is_not_told_to_the_model() -> None:
    assert list(TOOLS["with_session"].parameters["properties"]) == ["word"]


def test_arguments_may_be_called_like_methods_of_pydantic() -> None:
    assert list(TOOLS["schema"].parameters["properties"]) == ["json", "copy", "model_config"]


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("plain", {"city": "Rome", "days": 2}, "Rome 2"),
        ("optional", {"city": "Rome"}, '{"city":"Rome","unit":"c"}'),
        (
            "nested",
            {"points": [{"x": 1, "title": "a"}], "colour": "blue"},
            '[[{"x":1,"title":"a"}],"blue"]',
        ),
        ("limited", {"share": 1}, "1.0"),
        ("free", {"table": {"a": 1, "b": 2}}, "3"),
        ("nothing", {}, "null"),
        ("nothing", "", "null"),
        ("nothing", "  ", "null"),
        ("schema", {"json": "a", "copy": 1, "model_config": True}, "a1True"),
    ],
)
async def test_arguments_that_fit_arrive_typed_and_the_result_is_text(
    name: str, arguments: Any, text: str
) -> None:
    result = await call(name, arguments)
    assert result.text == text and result.kind != "error"


async def test_a_tool_gets_the_session_that_the_call_is_for() -> None:
    session: list[str] = []
    await call("with_session", {"word": "a"}, session)
    assert (await call("with_session", {"word": "b"}, session)).text == "2"
    assert session == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("plain", "no JSON", "Invalid JSON"),
        ("plain", '{"city": "Rome"', "Invalid JSON"),
        ("plain", [1], "should be an object, got [1]"),
        ("plain", "[" * 10_000, "Invalid JSON"),
        ("plain", r'{"city": "\ud800", "days": 1}', "Invalid JSON"),
        ("plain", "", "city: Field required; days: Field required"),
        ("plain", {"city": "Rome", "days": "2"}, 'days: Input should be a valid integer, got "2"'),
        ("plain", {"city": 5, "days": 2}, "city: Input should be a valid string, got 5"),
        ("plain", {"city": "Rome", "days": 2, "more": 1}, "more: Extra inputs are not permitted"),
        ("plain", {"city": "Rome", "days": True}, "days: Input should be a valid integer, got true"),
        ("optional", {"city": "Rome", "unit": "k"}, "unit: Input should be 'c' or 'f', got \"k\""),
        ("nested", {"points": [{"x": "1", "title": ""}], "colour": "blue"}, "points.0.x: "),
        ("nested", {"points": [], "colour": "green"}, "colour: Input should be 'red' or 'blue'"),
        ("limited", {"share": 2}, "share: Input should be less than or equal to 1, got 2"),
        ("with_session", {"word": "a", "session": []}, "session: Extra inputs are not permitted"),
    ],
)
async def test_arguments_that_do_not_fit_are_told_with_what_was_expected(
    name: str, arguments: Any, told: str
) -> None:
    result = await call(name, arguments)
    assert result.kind == "error"
    assert result.text.startswith(f"Error: {name} was not called")
    assert told in result.text
    assert json.dumps(TOOLS[name].parameters, separators=(",", ":")) in result.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("broken", "Error: broken failed: ZeroDivisionError: by zero in two lines"),
        ("choosy", "Error: Ask for something else."),
        ("slow", "Error: slow took longer than 0.02 s."),
    ],
)
async def test_a_tool_that_raises_or_hangs_is_told_to_the_model(name: str, text: str) -> None:
    result = await call(name, {})
    assert (result.text, result.kind) == (text, "error")


async def test_a_result_that_cannot_be_written_is_told_to_the_model() -> None:
    result = await call("unsayable", {})
    assert result.kind == "error"
    assert result.text.startswith("Error: unsayable failed: TypeError")


async def test_the_first_traceback_of_a_kind_is_logged_and_no_deliberate_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        tools = tools_of(Toolbox)
        for name in ("broken", "broken", "choosy"):
            await tools[name].call(Toolbox(), "{}", None)
    assert [record.exc_info is not None for record in caplog.records] == [True]


class Unlucky:
    @tool
    async def cut(self) -> str:
        return "half \ud83d"

    @tool
    async def cut_error(self) -> str:
        raise ToolError("half \ud83d")

    @tool
    async def wait(self) -> None:
        waited = asyncio.ensure_future(asyncio.sleep(60))
        waited.cancel()
        await waited


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cut", "half ?"),
        ("cut_error", "Error: half ?"),
        ("wait", "Error: wait failed: CancelledError"),
    ],
)
async def test_half_a_character_and_a_cancelled_wait_end_no_rollout(name: str, text: str) -> None:
    assert (await tools_of(Unlucky)[name].call(Unlucky(), "{}", None)).text == text


async def test_a_cancelled_rollout_cancels_its_tool() -> None:
    running = asyncio.create_task(TOOLS["slow"].call(Toolbox(), "{}", None))
    await asyncio.sleep(0.005)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


class Sleeper(Toolbox):
    async def plain(self, city: str, days: int) -> str:
        return ""

    @tool
    async def free(self, table: dict[str, int]) -> int:
        return -1


async def test_a_class_of_its_own_overrides_tools_and_takes_them_away() -> None:
    tools = tools_of(Sleeper)
    assert "plain" not in tools
    assert (await tools["free"].call(Sleeper(), '{"table": {}}', None)).text == "-1"


class NotAsync:
    @tool  # type: ignore[type-var]
    def look(self) -> str:
        return ""


class Untyped:
    @tool
    async def look(self, city) -> str:  # type: ignore[no-untyped-def]
        return ""


class Anything:
    @tool
    async def look(self, **more: str) -> str:
        return ""


class Taken:
    @tool
    async def verify(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (NotAsync, "look is no async method: write `async def look`"),
        (Untyped, "The argument city of the tool look has no type"),
        (Anything, "takes \\*\\*more"),
        (Taken, "cannot be called verify"),
    ],
)
def test_a_method_that_cannot_be_a_tool_is_refused_when_the_environment_is_made(
    kind: type, told: str
) -> None:
    with pytest.raises(TypeError, match=told):
        tools_of(kind)
