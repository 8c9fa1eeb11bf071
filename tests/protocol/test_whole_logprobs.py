"""Log probabilities of a whole answer go with the text that their tokens made."""

from __future__ import annotations

import json

import pytest
from msgspec import Raw
from openai.types.responses import Response

from local_vllm.protocol.converter import Converter
from local_vllm.protocol.logprobs import TokenTexts
from local_vllm.protocol.settings import ConverterSettings

INCLUDED = {"include": ["message.output_text.logprobs"]}


def entry(token: str) -> dict:
    return {"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []}


def respond(tokens: list[str], request: dict, **message) -> tuple[dict, dict]:
    """What was sent to the engine, and the response made of its answer."""
    convert = Converter(ConverterSettings())
    call = convert.to_chat(json.dumps({"input": "hi", **request}).encode(), "m")
    logprobs = {"content": [entry(token) for token in tokens]}
    choice = {"finish_reason": "stop", "logprobs": logprobs, "message": {"role": "assistant", **message}}
    answer = json.dumps({"model": "m", "choices": [choice]}).encode()
    body = json.loads(convert.to_response(call, answer).body)
    Response.model_validate(body, strict=True)
    return json.loads(call.body), body


def tokens_of(item: dict) -> list[str]:
    return [each["token"] for each in item["content"][0]["logprobs"]]


@pytest.mark.parametrize(
    ("request_fields", "top"),
    [(INCLUDED, 0), ({"top_logprobs": 2}, 2), ({**INCLUDED, "top_logprobs": 3}, 3)],
)
def test_they_are_asked_for_and_told(request_fields, top) -> None:
    chat, body = respond(["Hel", "lo", "<|end|>"], request_fields, content="Hello")
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, top)
    assert tokens_of(body["output"][0]) == ["Hel", "lo"]
    assert body["output"][0]["content"][0]["logprobs"][0] == entry("Hel")


def test_they_are_left_out_when_nobody_asked() -> None:
    chat, body = respond(["Hello"], {"top_logprobs": 0}, content="Hello")
    assert "logprobs" not in chat
    assert body["output"][0]["content"][0]["logprobs"] == []


def test_those_of_reasoning_and_tags_are_not_those_of_the_text() -> None:
    tokens = ["<think>", "hm", "</think>", "so", " be", " it", ""]
    for message in ({"content": "<think>hm</think>so be it"}, {"reasoning": "hm", "content": "so be it"}):
        _, body = respond(tokens, INCLUDED, **message)
        assert tokens_of(body["output"][1]) == ["so", " be", " it"]


def test_an_engine_that_lists_none_is_no_failure() -> None:
    convert = Converter(ConverterSettings())
    call = convert.to_chat(json.dumps({"input": "hi", **INCLUDED}).encode(), "m")
    for logprobs in (None, {"content": None}, {}):
        choice = {"logprobs": logprobs, "message": {"role": "assistant", "content": "x"}}
        answer = convert.to_response(call, json.dumps({"model": "m", "choices": [choice]}).encode())
        assert json.loads(answer.body)["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("tokens", "texts"),
    [
        (["<think>", "in", "</think>", "k"], [1, 3]),
        (["<", "think", ">", "think", "</", "think", ">", "think"], [3, 7]),
        (["<think>", "\n", "hi", "\n", "</think>", "\n", "thin"], [2, 6]),
        (["a", "</think>", "a"], [0, 2]),
        (["[THINK]", "T", "[/THINK]", "IN"], [1, 3]),
    ],
)
def test_the_characters_of_a_tag_are_not_the_text_that_follows_it(tokens, texts, streamed) -> None:
    """`texts` are the numbers of the tokens that are a text."""
    waiting, taken = TokenTexts(), []
    for number, token in enumerate(tokens):
        waiting.add(Raw(json.dumps([entry(token) | {"logprob": -number}]).encode()))
        if streamed and number in texts:
            taken.append(waiting.take(token))
    if not streamed:
        taken = [waiting.take(tokens[number]) for number in texts]
    assert [[-json.loads(bytes(each))["logprob"] for each in one] for one in taken] == [[number] for number in texts]


def test_the_tags_of_other_models_are_no_text_either() -> None:
    texts = TokenTexts(("<why>", "</why>"))
    texts.add(Raw(json.dumps([entry(token) for token in ("<", "why", ">", "why", " not")]).encode()))
    assert [json.loads(bytes(taken))["token"] for taken in texts.take("why not")] == ["why", " not"]
