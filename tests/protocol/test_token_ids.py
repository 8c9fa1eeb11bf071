"""Token ids and log probabilities come out as the engine wrote them, on the last item of a turn."""

from __future__ import annotations

import json

import pytest
from openai.types.responses import Response

from local_vllm.protocol.converter import Converter, tokenize_body
from local_vllm.protocol.settings import ConverterSettings

FIELDS = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOLS = [{"type": "function", "name": "f"}]


def answer(
    prompt="[1, 2,3]",
    ids="[40,50]",
    log_probs=("-0.0", "-1.25e-05"),
    tokens=("a", '\\"logprob\\":9,'),
    **message,
):
    """An answer as text, so that the spelling of numbers is under control."""
    listed = ",".join(
        '{"token":"%s","logprob":%s,"bytes":[1],"top_logprobs":[{"token":"x","logprob":-7.0}]}' % pair
        for pair in zip(tokens, log_probs, strict=False)
    )
    logprobs = "null" if log_probs is None else '{"content":[%s]}' % listed
    said = json.dumps({"role": "assistant", "content": "hi", **message})
    return (
        '{"id":"x","model":"m","choices":[{"index":0,"message":%s,"logprobs":%s,"finish_reason":"stop",'
        '"token_ids":%s}],'
        '"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5},"prompt_token_ids":%s}'
        % (said, logprobs, ids, prompt)
    ).encode()


CONVERTER = Converter(ConverterSettings(return_token_id_information=True))


def convert(raw, *, tokenized=None, converter=CONVERTER, **fields):
    call = converter.to_chat(json.dumps({"input": "a", "tools": TOOLS, **fields}).encode(), "e")
    return converter.to_response(call, raw, tokenized)


def test_the_engine_is_asked_for_ids_and_log_probabilities():
    call = CONVERTER.to_chat(b'{"input": "a"}', "e")
    fields = json.loads(call.body)
    assert (fields["return_token_ids"], fields["logprobs"]) == (True, True)
    assert call.wants_token_ids


def test_neither_is_asked_for_otherwise():
    call = Converter(ConverterSettings()).to_chat(b'{"input": "a"}', "e")
    assert not {"return_token_ids", "logprobs"} & json.loads(call.body).keys()
    assert not call.wants_token_ids


def test_a_request_may_ask_for_them_itself():
    converter = Converter(ConverterSettings())
    call = converter.to_chat(b'{"input": "a", "return_token_ids": true}', "e")
    assert json.loads(call.body)["logprobs"] is True
    item = json.loads(converter.to_response(call, answer()).body)["output"][-1]
    assert item["generation_token_ids"] == [40, 50]


@pytest.mark.parametrize(
    "message",
    [
        dict(),
        dict(reasoning="why"),
        dict(content=None, tool_calls=[CALL]),
        dict(tool_calls=[CALL, CALL | {"id": "c2"}]),
        dict(content="<think>only this"),
        dict(content=""),
    ],
)
def test_the_last_item_of_every_kind_of_turn_carries_them(message):
    body = json.loads(convert(answer(**message)).body)
    Response.model_validate(body, strict=True)
    *others, last = body["output"]
    assert [last[name] for name in FIELDS] == [[1, 2, 3], [40, 50], [-0.0, -1.25e-05]]
    assert all(type(number) is int for name in FIELDS[:2] for number in last[name])
    assert not any(name in item for item in others for name in FIELDS)


def test_the_arrays_are_copied_byte_for_byte():
    done = convert(answer())
    assert b'"prompt_token_ids":[1, 2,3],"generation_token_ids":[40,50],' in done.body
    assert b'"generation_log_probs":[-0.0,-1.25e-05]' in done.body
    assert (done.needs_tokenize, done.doubts) == (False, ())


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (answer(log_probs=("-0.5",)), "2 token ids but 1 log prob"),
        (answer(ids="[40]"), "1 token ids but 2 log prob"),
        (answer(ids="[]"), "0 token ids but 2 log prob"),
        (answer(ids="null"), "no token ids for what it generated"),
        (answer(log_probs=("-0.5", "null")), "no number"),
        (answer().replace(b'"logprobs":{', b'"other":{'), "no log probabilities"),
    ],
)
def test_ids_that_do_not_fit_their_log_probabilities_are_left_out_and_told(raw, problem):
    done = convert(raw)
    assert problem in done.doubts[-1].message
    assert not done.needs_tokenize
    assert not any(name.encode() in done.body for name in FIELDS)
    Response.model_validate(json.loads(done.body), strict=True)


def test_an_answer_of_no_tokens_has_empty_arrays():
    item = json.loads(convert(answer(ids="[]", log_probs=(), content="")).body)["output"][-1]
    assert [item[name] for name in FIELDS] == [[1, 2, 3], [], []]


def test_generated_ids_are_read_from_the_log_probabilities_when_they_are_named_there():
    item = json.loads(convert(answer(ids="null", tokens=("token_id:7", "token_id:8"))).body)["output"][-1]
    assert item["generation_token_ids"] == [7, 8]


@pytest.mark.parametrize("prompt", ["null", '"x"'])
def test_a_prompt_without_ids_asks_for_tokenize(prompt):
    done = convert(answer(prompt=prompt))
    assert done.needs_tokenize
    assert "prompt" in done.doubts[-1].message


def test_what_tokenize_said_fills_the_gap():
    done = convert(
        answer(prompt="null"), tokenized=b'{"count":3,"max_model_len":9,"tokens":[8, 9, 7],"token_strs":null}'
    )
    assert b'"prompt_token_ids":[8, 9, 7],' in done.body
    assert (done.needs_tokenize, done.doubts) == (False, ())


def test_ids_that_are_not_as_many_as_the_engine_counted_are_worth_a_warning():
    done = convert(answer(prompt="null"), tokenized=b'{"tokens":[8, 9]}')
    (doubt,) = done.doubts
    assert doubt.message.startswith("Token count differs from expected: 2 ids of the prompt")


@pytest.mark.parametrize("tokenized", [b"", b"{}", b'{"tokens": null}', b'{"error": {"message": "x"}}'])
def test_a_tokenize_that_says_nothing_is_told_and_not_asked_again(tokenized):
    done = convert(answer(prompt="null"), tokenized=tokenized)
    assert "prompt" in done.doubts[-1].message
    assert not done.needs_tokenize


def test_tokenize_is_asked_about_the_same_prompt():
    settings = ConverterSettings(return_token_id_information=True, chat_template_kwargs={"a": 1})
    request = {
        "input": "a",
        "tools": TOOLS,
        "temperature": 0.5,
        "reasoning": {"effort": "none"},
        "documents": [],
    }
    call = Converter(settings).to_chat(json.dumps(request).encode(), "e")
    assert json.loads(tokenize_body(call)) == {
        "model": "e",
        "messages": [{"role": "user", "content": "a"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "chat_template_kwargs": {
            "a": 1,
            "reasoning_effort": "none",
            "enable_thinking": False,
            "documents": [],
        },
    }
