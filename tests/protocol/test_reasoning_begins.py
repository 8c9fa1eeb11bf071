"""Where the reasoning of an answer begins, streamed or whole, when the chat template may have opened it."""

from __future__ import annotations

import json

import pytest
from chat_stream import DONE, Conversion, chunk, stream_of
from event_grammar import check, parse

THINKS = "<|im_start|>assistant\n<think>\n"
ANSWERS = "<|im_start|>assistant\n"
R, M = "reasoning", "message"


def kinds(response):
    return [item["type"] for item in response["output"]]


def streamed(conversion, prompt, *deltas, finish_reason="stop"):
    first = chunk({"role": "assistant", "content": ""}, prompt_text=prompt)
    payloads = [first, *map(chunk, deltas), chunk({}, finish_reason), DONE]
    return kinds(check(parse(conversion.all(payloads))))


def whole(conversion, prompt, finish_reason="stop", **message):
    choice = {"message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    answer = {"model": "m", "choices": [choice], "prompt_text": prompt}
    return kinds(json.loads(conversion.converter.to_response(conversion.call, json.dumps(answer).encode()).body))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [(THINKS, [R, M]), ("<|im_start|>assistant\n<think>\n\n</think>\n\n", [M]), (ANSWERS, [M])],
)
def test_the_prompt_tells_whether_a_stream_begins_inside_a_block(prompt, expected):
    answer = "why</think>so" if expected[0] == R else "so"
    assert streamed(Conversion(), prompt, {"content": answer}) == expected


@pytest.mark.parametrize(
    ("prompt", "content", "finish_reason", "expected"),
    [
        (THINKS, "why</think>so", "stop", [R, M]),
        (THINKS, "why", "length", [R]),
        (THINKS, "so", "stop", [M]),
        (ANSWERS, "The tag </think> ends it.", "stop", [M]),
        (ANSWERS, "<think>why</think>so", "stop", [R, M]),
        (ANSWERS, "so", "length", [M]),
        (None, "why</think>so", "stop", [R, M]),
        (None, "why", "length", [M]),
    ],
)
def test_it_tells_so_of_a_whole_answer_too(prompt, content, finish_reason, expected):
    assert whole(Conversion({"stream": None}), prompt, finish_reason, content=content) == expected


def test_the_prompt_beats_the_setting():
    settings = {"chat_template_opens_reasoning": True}
    assert whole(Conversion({"stream": None}, **settings), ANSWERS, "length", content="so") == [M]
    assert streamed(Conversion(**settings), ANSWERS, {"content": "so"}) == [M]


def test_without_the_prompt_the_setting_tells_it():
    conversion = Conversion(chat_template_opens_reasoning=True)
    assert kinds(check(parse(conversion.all(stream_of({"content": "hm"}))))) == [R]


@pytest.mark.parametrize("stream", [True, None])
def test_the_prompt_is_asked_for_where_it_decides(stream):
    asked = {"stream": stream}
    assert json.loads(Conversion(asked).call.body)["return_prompt_text"] is True
    for settings in ({"uses_reasoning_parser": False}, {"engine_parses_reasoning": True}):
        assert "return_prompt_text" not in json.loads(Conversion(asked, **settings).call.body)


@pytest.mark.parametrize(
    ("request_fields", "settings"),
    [
        ({"include_reasoning": False}, {}),
        ({"include_reasoning": False}, {"chat_template_opens_reasoning": True}),
        ({}, {"extra_body": {"include_reasoning": False}}),
        ({}, {"engine_parses_reasoning": True}),
        ({}, {"engine_parses_reasoning": True, "chat_template_opens_reasoning": True}),
    ],
)
def test_an_answer_out_of_which_the_engine_takes_reasoning_is_a_message(request_fields, settings):
    conversion = Conversion(request_fields, **settings)
    assert streamed(conversion, THINKS, {"content": "so"}) == [M]
    conversion = Conversion(request_fields | {"stream": None}, **settings)
    for finish_reason in ("stop", "length"):
        assert whole(conversion, THINKS, finish_reason, content="so") == [M]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("learns_from", ["stream", "whole"])
def test_an_engine_shows_once_that_it_has_a_parser(field, learns_from):
    conversion = Conversion()
    assert streamed(Conversion(), THINKS, {"content": "so"}) == [R]
    if learns_from == "stream":
        assert streamed(conversion, THINKS, {field: "why"}, {"content": "so"}) == [R, M]
    else:
        assert whole(conversion, THINKS, content="so", **{field: "why"}) == [R, M]
    conversion.events = conversion.converter.stream(conversion.call)
    assert streamed(conversion, THINKS, {"content": "so"}) == [M]
    assert "return_prompt_text" not in json.loads(conversion.converter.to_chat(b'{"input": "hi"}', "m").body)


def test_a_base_model_parses_nothing_whatever_the_flags_of_its_engine():
    settings = {"use_completions_api": True, "engine_parses_reasoning": True, "chat_template_opens_reasoning": True}
    conversion = Conversion({"tools": None, "stream": None, "include_reasoning": False}, **settings)
    answer = {"model": "m", "choices": [{"text": "hm", "finish_reason": "length"}]}
    body = conversion.converter.to_response(conversion.call, json.dumps(answer).encode()).body
    assert kinds(json.loads(body)) == [R]
