"""What a stream of the Responses API must be, written down apart from the code that makes one: OpenAI's types
for each event, and a small state machine for all of them together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, get_args

from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel

_UNION = get_args(ResponseStreamEvent)[0]
EVENT_TYPES: dict[str, type[BaseModel]] = {
    get_args(each.model_fields["type"].annotation)[0]: each for each in get_args(_UNION)
}
ENDINGS = ("completed", "incomplete", "failed")
# kind of item -> what its deltas are called, and the key of its whole text
TEXTS = {
    "output_text": "text",
    "refusal": "refusal",
    "reasoning_text": "text",
    "function_call_arguments": "arguments",
    "custom_tool_call_input": "input",
}


def parse(stream: bytes) -> list[dict[str, Any]]:
    """The events of a stream that is whole; the name of each has to be its type."""
    events = []
    assert stream.endswith(b"\n\n")
    for block in stream.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


@dataclass
class Item:
    """One output item while it is open."""

    announced: dict[str, Any]
    text: str = ""
    kind: str | None = None
    states: list[str] = field(default_factory=list)


def check(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Fails unless these events are a whole and correct stream. Gives the response that it ended with."""
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        EVENT_TYPES[event["type"]].model_validate(event, strict=True)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:2] == ["created", "in_progress"]
    assert [kind for kind in kinds if kind in ENDINGS] == kinds[-1:]
    for begun in events[:2]:
        assert (begun["response"]["status"], begun["response"]["output"]) == ("in_progress", [])
    last = events[-1]["response"]
    assert last["status"] == kinds[-1]
    assert {event["response"]["id"] for event in (*events[:2], events[-1])} == {last["id"]}
    done = _check_items(events[2:-1])
    if kinds[-1] != "failed":
        assert [done[index] for index in range(len(done))] == last["output"]
    return last


def _check_items(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The items as their last events have them, by index."""
    items: list[Item] = []
    done: dict[int, dict[str, Any]] = {}
    for event in events:
        index, name = event["output_index"], event["type"].removeprefix("response.")
        if name == "output_item.added":
            assert index == len(items)
            assert event["item"]["status"] == "in_progress"
            assert event["item"]["id"] not in [item.announced["id"] for item in items]
            items.append(Item(event["item"]))
            continue
        assert index not in done, "an item that is done is touched no more"
        item = items[index]
        if name == "output_item.done":
            _check_done(item, event["item"])
            done[index] = event["item"]
        else:
            assert event["item_id"] == item.announced["id"]
            _check_content(item, name, event)
        texts = [each for n, each in enumerate(items) if n not in done and "content" in each.announced]
        assert len(texts) <= 1, "one text is open at a time"
    assert len(done) == len(items) or events[-1:] and done.keys() <= set(range(len(items)))
    return done


def _check_content(item: Item, name: str, event: dict[str, Any]) -> None:
    is_call = "content" not in item.announced
    if not is_call:
        assert event["content_index"] == 0
    if name == "content_part.added":
        assert item.states == [] and not is_call
        item.kind = event["part"]["type"]
        assert event["part"][TEXTS[item.kind]] == ""
    elif name == "content_part.done":
        assert item.states[-1] == "text.done" and not is_call
        assert (event["part"]["type"], event["part"][TEXTS[item.kind or ""]]) == (item.kind, item.text)
    else:
        kind, _, what = name.rpartition(".")
        assert item.kind in (kind, None)
        item.kind = kind
        assert is_call or item.states[0] == "content_part.added"
        assert "text.done" not in item.states
        if what == "done":
            assert event[TEXTS[kind]] == item.text
        else:
            assert event["delta"] != ""
            item.text += event["delta"]
        name = f"text.{what}"
    item.states.append(name)


def _check_done(item: Item, whole: dict[str, Any]) -> None:
    assert item.states[-1] == ("content_part.done" if "content" in whole else "text.done")
    assert whole["status"] in ("completed", "incomplete")
    for name in ("id", "type", "role", "call_id", "name"):
        assert whole.get(name) == item.announced.get(name)
    if "content" in whole:
        (part,) = whole["content"]
        assert (part["type"], part[TEXTS[part["type"]]]) == (item.kind, item.text)
    else:
        assert whole[TEXTS[item.kind or ""]] == item.text
