"""A base model is asked for plain completions, and its answers become responses all the same."""

from __future__ import annotations

import json

import pytest
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import Response

from local_vllm.errors import RequestError, UpstreamError
from local_vllm.protocol.completion_answers import ChatChunks
from local_vllm.protocol.completions import NO_LIMIT
from local_vllm.protocol.converter import Converter, tokenize_body
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
    assert sent({"input": "Hello"}) == {"model": "base", "prompt": "Hello", "max_tokens": NO_LIMIT}
    assert sent({"input": ONE_OF_EACH, "instructions": "i"})["prompt"] == "isu1u2a"


def test_a_template_makes_the_prompt_and_special_tokens_are_not_added_twice() -> None:
    def render(messages, variables):
        return f"{[m['role'] for m in messages]} {variables}"

    body = sent({"input": "Hello", "chat_template_kwargs": {"x": 1}, "reasoning": {"effort": "low"}}, render)
    assert body == {
        "model": "base",
        "prompt": "['user'] {'reasoning_effort': 'low', 'x': 1}",
        "add_special_tokens": False,
        "max_tokens": NO_LIMIT,
    }


def test_limits_and_sampling_have_the_names_of_completions() -> None:
    body = sent({"input": "a", "max_output_tokens": 7, "temperature": 0.5, "top_k": 3, "top_logprobs": 2})
    assert body.pop("prompt") == "a"
    assert body == {"model": "base", "max_tokens": 7, "temperature": 0.5, "top_k": 3, "logprobs": 2}


def test_a_template_is_given_messages_as_vllm_gives_them() -> None:
    given = []

    def render(messages, variables):
        given.append((messages, variables))
        return "p"

    items = [
        *ONE_OF_EACH,
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "o"},
    ]
    sent({"input": items, "continue_final_message": True, "add_generation_prompt": False}, render)
    ((system, user, assistant, thinking, tool), variables), = given
    assert variables == {"continue_final_message": True, "add_generation_prompt": False}
    assert (system["content"], user["content"], assistant["content"]) == ("s", "u1\nu2", "a")
    assert (thinking["reasoning"], thinking["reasoning_content"]) == ("hm", "hm")
    assert thinking["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert tool["content"] == "o"


def test_the_prompt_of_a_completion_can_be_tokenized() -> None:
    call = converter(lambda messages, variables: "p").to_chat(b'{"input": "Hello"}', "base")
    assert json.loads(tokenize_body(call)) == {"model": "base", "prompt": "p", "add_special_tokens": False}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": [{"content": [{"text": "a"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"content": ["a"]}]}, "messages[0].content[0]"),
        ({"messages": [{"content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [], "tools": [{}]}, "tools"),
        ({"messages": [], "chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"messages": [], "chat_template": "x"}, "chat_template"),
        ({"messages": [], "stream": "yes"}, "stream"),
    ],
)
def test_a_chat_request_that_cannot_be_a_completion_is_refused(fields, param) -> None:
    with pytest.raises(RequestError) as refused:
        converter(lambda messages, variables: "p").chat_passthrough(json.dumps(fields).encode(), "base")
    assert refused.value.param == param


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


@pytest.mark.parametrize("wanted", [{}, {"logprobs": False}, {"logprobs": False, "top_logprobs": 2}])
def test_log_probabilities_are_asked_for_when_they_are_wanted(wanted) -> None:
    request = {"messages": [{"role": "user", "content": "a"}], "tools": [], "tool_choice": None, **wanted}
    call = converter().chat_passthrough(json.dumps(request).encode(), "base")
    assert json.loads(call.body) == {"model": "base", "prompt": "a", "max_tokens": NO_LIMIT}
    call = converter().chat_passthrough(json.dumps({**request, "logprobs": True}).encode(), "base")
    assert json.loads(call.body)["logprobs"] == wanted.get("top_logprobs", 0)


def test_as_many_alternatives_come_back_as_were_asked_for_the_likeliest_first() -> None:
    convert = converter()
    logprobs = {"tokens": [" w"], "token_logprobs": [-3.5], "top_logprobs": [{" w": -3.5, "a": -0.5, "b": -0.25}]}
    for most, expected in ((0, []), (1, ["b"]), (2, ["b", "a"]), ({"no": "number"}, []), (True, [])):
        request = {"messages": [], "logprobs": True, "top_logprobs": most}
        call = convert.chat_passthrough(json.dumps(request).encode(), "base")
        answer = json.loads(convert.to_response(call, completion(logprobs=logprobs)).body)
        (entry,) = answer["choices"][0]["logprobs"]["content"]
        assert [top["token"] for top in entry["top_logprobs"]] == expected


def pieces() -> list[bytes]:
    """What vLLM 0.32 streams: the prompt's ids in the first piece, and null in those that follow."""


    def piece(text: str, token_id: int, **choice: object) -> dict:
        logprobs = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{text: -0.5}]}
        choice |= {"index": 0, "text": text, "logprobs": logprobs, "token_ids": [token_id]}
        return {"choices": [choice], "usage": None}

    usage = {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    chunks = [
        piece(" wor", 7, finish_reason=None, prompt_token_ids=[1, 2]),
        piece("ld", 8, finish_reason="length", prompt_token_ids=None),
        {"choices": [], "usage": usage},
    ]
    made = [json.dumps({"id": "cmpl-1", "model": "base", "created": 5, **chunk}).encode() for chunk in chunks]
    return [*made, b"[DONE]"]


def test_a_stream_of_completions_becomes_one_of_chat() -> None:
    asked = b'{"messages": [], "stream": true, "logprobs": true, "stream_options": {"include_usage": true}}'
    call = converter().chat_passthrough(asked, "base")
    sent = json.loads(call.body)
    assert (call.stream, sent["stream"], sent["stream_options"]) == (True, True, {"include_usage": True})
    chunks = ChatChunks(call.body)
    *made, done = [chunks.data(piece) for piece in pieces()]
    assert done == b"[DONE]"
    first, last, usage = [ChatCompletionChunk.model_validate_json(each) for each in made]
    assert (first.object, first.id, first.created) == ("chat.completion.chunk", "cmpl-1", 5)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", " wor")
    assert (last.choices[0].delta.role, last.choices[0].delta.content) == (None, "ld")
    assert (first.choices[0].finish_reason, last.choices[0].finish_reason) == (None, "length")
    assert [each.choices[0].logprobs.content[0].logprob for each in (first, last)] == [-0.5, -0.5]
    assert (first.prompt_token_ids, first.choices[0].token_ids, last.choices[0].token_ids) == ([1, 2], [7], [8])
    assert (usage.choices, usage.usage.completion_tokens) == ([], 2)


def test_each_of_several_answers_begins_with_its_role() -> None:
    chunks = ChatChunks(b"{}")
    made = [json.loads(chunks.data(completion(index=index)))["choices"][0] for index in (0, 1, 0, 1)]
    assert [(choice["index"], choice["delta"].get("role")) for choice in made] == [
        (0, "assistant"), (1, "assistant"), (0, None), (1, None),
    ]  # fmt: skip


@pytest.mark.parametrize("payload", [b'{"error": {"message": "no", "code": 500}}', b"[1]", b"what?"])
def test_what_is_no_piece_of_a_completion_passes_as_it_is(payload) -> None:
    assert ChatChunks(b"{}").data(payload) == payload


def test_token_ids_come_with_a_stream_as_with_a_whole_answer() -> None:
    convert = converter(return_token_id_information=True)
    events = convert.stream(convert.to_chat(b'{"input": "Hello", "stream": true}', "base"))
    for piece in pieces():
        events.add(piece)
    assert not events.needs_tokenize
    events.finish()
    item = json.loads(events.response)["output"][-1]
    assert (item["prompt_token_ids"], item["generation_token_ids"]) == ([1, 2], [7, 8])
    assert item["generation_log_probs"] == [-0.5, -0.5]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("end_of_prompt", "kinds"), [("<think>\n", ["reasoning", "message"]), ("", ["message"])])
def test_a_block_that_the_template_opened_is_found_in_the_prompt(stream, end_of_prompt, kinds) -> None:
    convert = converter(lambda messages, variables: f"Hi{end_of_prompt}")
    call = convert.to_chat(json.dumps({"input": "Hello", "stream": stream}).encode(), "base")
    answer = completion(text="hm</think>yes")
    if stream:
        events = convert.stream(call)
        events.add(answer)
        events.finish()
        output = json.loads(events.response)["output"]
    else:
        output = json.loads(convert.to_response(call, answer).body)["output"]
    assert [item["type"] for item in output] == kinds


@pytest.mark.parametrize("raw", [b"", b"<html>", b'{"choices": []}', b'{"choices": [{"text": 3}]}'])
def test_an_answer_that_is_no_completion_is_the_engine_s_fault(raw) -> None:
    convert = converter()
    with pytest.raises(UpstreamError):
        convert.to_response(convert.to_chat(b'{"input": "a"}', "base"), raw)
