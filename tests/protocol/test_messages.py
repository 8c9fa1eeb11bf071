"""Input items become the chat messages that the model would have seen in a chat."""

from __future__ import annotations

import json

import pytest

from local_vllm.errors import RequestError
from local_vllm.protocol.converter import Converter
from local_vllm.protocol.settings import ConverterSettings


def messages(given, *, settings=ConverterSettings(), **fields):
    body = json.dumps({"input": given, **fields}).encode()
    return json.loads(Converter(settings).to_chat(body, "engine").body)["messages"]


def user(text="hi"):
    return {"role": "user", "content": text}


def call(call_id="c1", name="f", arguments="{}"):
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def output(call_id="c1", value="done"):
    return {"type": "function_call_output", "call_id": call_id, "output": value}


def said(text):
    return {
        "type": "message",
        "role": "assistant",
        "id": "msg_1",
        "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


def thought(text):
    return {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    }


def chat_call(call_id="c1", name="f", arguments="{}"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def assistant(content=None, **fields):
    return {"role": "assistant", "content": content, **fields}


def tool(call_id="c1", content="done"):
    return {"role": "tool", "content": content, "tool_call_id": call_id}


def test_a_string_is_one_user_message():
    assert messages("hello") == [user("hello")]


def test_instructions_are_a_system_message_before_all_others():
    assert messages("hello", instructions="be brief") == [
        {"role": "system", "content": "be brief"},
        user("hello"),
    ]


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
@pytest.mark.parametrize("kind", [{}, {"type": "message"}])
def test_every_role_keeps_its_name_with_and_without_a_type(role, kind):
    assert messages([{"role": role, "content": "x", **kind}]) == [{"role": role, "content": "x"}]


def test_a_developer_becomes_system_when_so_set():
    settings = ConverterSettings(replace_developer_role_with_system=True)
    assert messages([{"role": "developer", "content": "x"}], settings=settings)[0]["role"] == "system"


def test_one_text_part_is_a_string_and_several_stay_parts():
    one = [{"type": "input_text", "text": "a"}]
    two = [*one, {"type": "input_text", "text": "b"}]
    assert messages([user(one)]) == [user("a")]
    assert messages([user(two)]) == [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]


@pytest.mark.parametrize(
    ("detail", "sent"),
    [(None, {}), ("auto", {}), ("original", {}), ("low", {"detail": "low"}), ("high", {"detail": "high"})],
)
def test_an_image_part_becomes_an_image_url(detail, sent):
    part = {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": detail}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", **sent}}
    assert messages([user([part, {"type": "input_text", "text": "what?"}])]) == [
        user([image, {"type": "text", "text": "what?"}])
    ]


def test_an_audio_part_is_handed_on():
    audio = {"data": "AA", "format": "wav"}
    part = {"type": "input_audio", "input_audio": audio}
    assert messages([user([part])]) == [user([part])]


def test_refusals_and_texts_of_an_assistant_are_one_text():
    content = [{"type": "output_text", "text": "I "}, {"type": "refusal", "refusal": "cannot"}]
    assert messages([{"role": "assistant", "content": content}]) == [assistant("I cannot")]


def test_parallel_calls_and_the_text_and_reasoning_beside_them_are_one_message():
    given = [user(), thought("hm"), said("let me see"), call("c1"), call("c2"), output("c1"), output("c2")]
    assert messages(given) == [
        user(),
        assistant("let me see", reasoning="hm", tool_calls=[chat_call("c1"), chat_call("c2")]),
        tool("c1"),
        tool("c2"),
    ]


def test_calls_of_different_turns_stay_apart():
    assert messages([user(), call("c1"), output("c1"), call("c2"), output("c2")]) == [
        user(),
        assistant(tool_calls=[chat_call("c1")]),
        tool("c1"),
        assistant(tool_calls=[chat_call("c2")]),
        tool("c2"),
    ]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([thought("a"), said("x")], [assistant("x", reasoning="a")]),
        ([said("x"), thought("a"), said("y")], [assistant("x"), assistant("y", reasoning="a")]),
        ([said("x"), said("y")], [assistant("x"), assistant("y")]),
        ([thought("a"), thought("b"), said("x")], [assistant("x", reasoning="a\nb")]),
        (
            [thought("a"), call("c1"), thought("b"), call("c2"), output("c1"), output("c2")],
            [
                assistant(reasoning="a\nb", tool_calls=[chat_call("c1"), chat_call("c2")]),
                tool("c1"),
                tool("c2"),
            ],
        ),
        (
            [call("c1"), said("x"), output("c1")],
            [assistant("x", tool_calls=[chat_call("c1")]), tool("c1")],
        ),
        ([thought("a")], [assistant(reasoning="a")]),
        ([thought("a"), user()], [assistant(reasoning="a"), user()]),
        ([user(), thought(""), said("x")], [user(), assistant("x")]),
    ],
)
def test_reasoning_stands_in_the_message_that_it_led_to(items, expected):
    assert messages(items) == expected


def test_a_reasoning_summary_stands_in_when_there_is_no_reasoning():
    item = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "short"}],
        "encrypted_content": "xyz",
    }
    assert messages([item, said("x")]) == [assistant("x", reasoning="short")]


def test_an_output_may_be_a_list_of_parts():
    parts = [{"type": "input_text", "text": "a"}]
    image = {"type": "input_image", "image_url": "https://example.org/a.png"}
    assert messages([call(), output(value=parts)])[-1] == tool(content="a")
    assert messages([call(), output(value=[*parts, image])])[-1] == tool(
        content=[
            {"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ]
    )


def test_a_custom_call_is_a_function_call_of_one_string():
    given = [
        {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": '*** "x"\n'},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
    ]
    assert messages(given) == [
        assistant(tool_calls=[chat_call("c1", "patch", '{"input":"*** \\"x\\"\\n"}')]),
        tool("c1"),
    ]


def test_token_ids_of_earlier_turns_are_left_out_whatever_they_hold():
    item = said("x") | {
        "prompt_token_ids": [1, 2],
        "generation_token_ids": "nonsense",
        "generation_log_probs": [None],
    }
    assert messages([item]) == [assistant("x")]


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([output("c1")], "input[0].call_id"),
        ([call("c1"), output("c2")], "input[1].call_id"),
        ([output("c1"), call("c1")], "input[0].call_id"),
        ([call("c1"), call("c1"), output("c1")], "input[1].call_id"),
        ([call("c1"), output("c1"), call("c1"), output("c1")], "input[2].call_id"),
        ([call("c1"), output("c1"), output("c1")], "input[2].call_id"),
        ([user(), call("c1")], "input"),
        ([call("c1"), call("c2"), output("c2")], "input"),
    ],
)
def test_calls_and_outputs_that_do_not_belong_together_are_refused(items, param):
    with pytest.raises(RequestError) as refused:
        messages(items)
    assert (refused.value.status, refused.value.param) == (400, param)


# ---- how earlier reasoning is told

TURN = [user(), thought("hm"), said("so"), user("and?")]


@pytest.mark.parametrize(
    ("settings", "turn"),
    [
        ({}, assistant("so", reasoning="hm")),
        ({"uses_interleaved_reasoning": False}, assistant("so")),
        ({"preserve_reasoning_in_assistant_content": True}, assistant("<think>hm</think>so")),
        (
            {"preserve_reasoning_in_assistant_content": True, "uses_interleaved_reasoning": False},
            assistant("<think>hm</think>so"),
        ),
        (
            {"preserve_reasoning_in_assistant_content": True, "reasoning_tags": ("[T]", "[/T]")},
            assistant("[T]hm[/T]so"),
        ),
    ],
)
def test_reasoning_of_earlier_turns_stands_where_the_settings_say(settings, turn):
    assert messages(TURN, settings=ConverterSettings(**settings)) == [user(), turn, user("and?")]


def test_reasoning_that_is_left_out_leaves_no_empty_turn():
    settings = ConverterSettings(uses_interleaved_reasoning=False)
    assert messages([user(), thought("hm"), user("and?")], settings=settings) == [user(), user("and?")]
    given = [user(), thought("hm"), call(), output()]
    assert messages(given, settings=settings)[1] == assistant(tool_calls=[chat_call()])


def test_reasoning_before_a_call_stands_in_its_text_when_it_is_preserved():
    settings = ConverterSettings(preserve_reasoning_in_assistant_content=True)
    given = [user(), thought("hm"), call(), output()]
    assert messages(given, settings=settings)[1] == assistant("<think>hm</think>", tool_calls=[chat_call()])


@pytest.mark.parametrize(
    ("items", "settled"),
    [
        ([user(), thought("hm")], True),
        ([user(), thought("hm"), said("")], True),
        ([user(), thought("hm"), said("so")], False),
        ([user(), thought("hm"), user()], False),
        ([user(), thought("hm"), call(), output()], False),
        ([user()], False),
        ([said("")], False),
    ],
)
def test_a_turn_of_reasoning_alone_is_the_end_when_so_set(items, settled):
    body = json.dumps({"input": items}).encode()
    end = Converter(ConverterSettings(sequential_reasoning_allowed=False)).to_chat(body, "e").settled
    assert (end is not None) == settled
    assert Converter(ConverterSettings()).to_chat(body, "e").settled is None


def test_video_and_audio_parts_are_handed_on():
    parts = [
        {"type": "input_video", "video_url": "https://example.org/a.mp4"},
        {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AA"}},
    ]
    assert messages([user(parts)]) == [
        user([
            {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}},
            {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AA"}},
        ])
    ]
