"""A base model is asked for plain completions, and its answers become responses all the same."""

from __future__ import annotations

import json

import pytest
from openai.types.responses import Response

from local_vllm.errors import RequestError, UpstreamError
from local_vllm.protocol.converter import Converter
from local_vllm.protocol.settings import ConverterSettings

ONE_OF_EACH = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "input_text", "text": "u1"}, {"type": "input_text", "text": "u2"}]},
    {"role": "assistant", "content": "a"},
]


def converter(render=None, **settings) -> Converter:
    return Converter(ConverterSettings(use_completions_api=True, **settings), render=render)


def sent(request: dict, render=None) -> dict:
    call = converter(render).to_chat(json.dumps(request).encode(), "base")
    assert call.path == "/completions"
    return json.loads(call.body)


def completion(**choice) -> bytes:
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    choice = {"index": 0, "text": " world", "finish_reason": "stop", "logprobs": None} | choice
    return json.dumps({"id": "cmpl-1", "model": "base", "choices": [choice], "usage": usage}).encode()


def test_without_a_template_the_prompt_is_the_texts_one_after_another() -> None:
    assert sent({"input": "Hello"}) == {"model": "base", "prompt": "Hello", "max_tokens": None}
    assert sent({"input": ONE_OF_EACH, "instructions": "i"})["prompt"] == "isu1u2a"


def test_a_template_makes_the_prompt_and_special_tokens_are_not_added_twice() -> None:
    def render(messages, variables):
        return f"{[m['role'] for m in messages]} {variables}"

    body = sent({"input": "Hello", "chat_template_kwargs": {"x": 1}, "reasoning": {"effort": "low"}}, render)
    assert body == {
        "model": "base",
        "prompt": "['user'] {'x': 1}",
        "add_special_tokens": False,
        "max_tokens": None,
    }


def test_limits_and_sampling_have_the_names_of_completions() -> None:
    body = sent({"input": "a", "max_output_tokens": 7, "temperature": 0.5, "top_k": 3, "top_logprobs": 2})
    assert body.pop("prompt") == "a"
    assert body == {"model": "base", "max_tokens": 7, "temperature": 0.5, "top_k": 3, "logprobs": 2}


@pytest.mark.parametrize(
    ("request_fields", "param"),
    [
        ({"input": "a", "tools": [{"type": "function", "name": "f"}]}, "tools"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, "input"),
    ],
)
def test_what_a_base_model_cannot_do_is_refused(request_fields, param) -> None:
    with pytest.raises(RequestError) as refused:
        sent(request_fields)
    assert refused.value.param == param


def test_a_completion_becomes_a_response() -> None:
    convert = converter()
    call = convert.to_chat(b'{"input": "Hello"}', "base")
    body = json.loads(convert.to_response(call, completion(finish_reason="length")).body)
    response = Response.model_validate(body, strict=True)
    assert (response.output_text, response.status) == (" world", "incomplete")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (2, 3)


def test_token_ids_and_log_probabilities_come_along() -> None:
    convert = converter(return_token_id_information=True)
    call = convert.to_chat(b'{"input": "Hello"}', "base")
    assert json.loads(call.body)["logprobs"] == 0
    logprobs = {"tokens": [" wor", "ld"], "token_logprobs": [-0.5, -1.25], "top_logprobs": None}
    answer = completion(logprobs=logprobs, token_ids=[7, 8], prompt_token_ids=[1, 2])
    item = json.loads(convert.to_response(call, answer).body)["output"][-1]
    assert item["prompt_token_ids"] == [1, 2]
    assert item["generation_token_ids"] == [7, 8]
    assert item["generation_log_probs"] == [-0.5, -1.25]


def test_included_log_probabilities_have_the_shape_of_the_responses_api() -> None:
    convert = converter()
    call = convert.to_chat(b'{"input": "Hello", "top_logprobs": 1}', "base")
    logprobs = {"tokens": [" wor"], "token_logprobs": [-0.5], "top_logprobs": [{" wor": -0.5}]}
    body = json.loads(convert.to_response(call, completion(text=" wor", logprobs=logprobs)).body)
    Response.model_validate(body, strict=True)
    (entry,) = body["output"][0]["content"][0]["logprobs"]
    assert (entry["token"], entry["logprob"], entry["top_logprobs"][0]["token"]) == (" wor", -0.5, " wor")


def test_a_stream_of_completions_becomes_events() -> None:
    convert = converter()
    call = convert.to_chat(b'{"input": "Hello", "stream": true}', "base")
    assert json.loads(call.body)["stream_options"] == {"include_usage": True}
    events = convert.stream(call)
    pieces = [completion(text=" wor", finish_reason=None), completion(text="ld"), b"[DONE]"]
    written = b"".join([*(events.add(piece) for piece in pieces), events.finish()])
    assert written.count(b"event: response.output_text.delta") == 2
    assert Response.model_validate_json(events.response).output_text == " world"


def test_a_chat_request_is_answered_in_chat_s_shape() -> None:
    convert = converter()
    call = convert.chat_passthrough(b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}', "base")
    assert json.loads(call.body) == {"model": "base", "prompt": "Hello", "max_tokens": 3}
    chat = json.loads(convert.to_response(call, completion()).body)
    assert chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": " world"}
    with pytest.raises(RequestError, match="stream"):
        convert.chat_passthrough(b'{"messages": [], "stream": true}', "base")


@pytest.mark.parametrize("raw", [b"", b"<html>", b'{"choices": []}', b'{"choices": [{"text": 3}]}'])
def test_an_answer_that_is_no_completion_is_the_engine_s_fault(raw) -> None:
    convert = converter()
    with pytest.raises(UpstreamError):
        convert.to_response(convert.to_chat(b'{"input": "a"}', "base"), raw)
