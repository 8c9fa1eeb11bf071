"""A request for an engine's own Responses API is the caller's, with the server's settings beside it."""

from __future__ import annotations

import json

import pytest

from local_vllm.errors import RequestError
from local_vllm.protocol.converter import Converter
from local_vllm.protocol.settings import ConverterSettings


def sent(request: dict, **settings) -> dict:
    converter = Converter(ConverterSettings(**settings))
    call = converter.native.to_native(json.dumps({"input": "a", **request}).encode(), "engine")
    assert call.path == "/responses"
    body = json.loads(call.body)
    assert (body.pop("model"), body.pop("input")) == ("engine", "a")
    return body


def test_all_that_the_caller_said_is_passed_on() -> None:
    items = [{"type": "computer_call_output", "output": {"type": "computer_screenshot"}}]
    request = {"input": items, "tools": [{"type": "web_search"}], "previous_response_id": "resp_1", "stream": True}
    call = Converter(ConverterSettings()).native.to_native(json.dumps({**request, "model": "m"}).encode(), "e")
    assert json.loads(call.body) == {**request, "model": "e"}
    assert (call.stream, call.model_asked) == (True, "m")


@pytest.mark.parametrize(
    ("settings", "request_fields", "expected"),
    [
        ({"extra_body": {"max_tokens": 5}}, {}, {"max_output_tokens": 5}),
        ({"extra_body": {"max_tokens": 5}}, {"max_output_tokens": 6}, {"max_output_tokens": 6}),
        ({"extra_body": {"reasoning.effort": "low"}}, {}, {"reasoning": {"effort": "low"}}),
        ({"extra_body": {"top_k": 5}}, {"top_k": None}, {"top_k": 5}),
        ({"sampling_overrides": {"temperature": 1.0}}, {"temperature": 0.5}, {"temperature": 1.0}),
        (
            {"chat_template_kwargs": {"a": 1, "b": 1}},
            {"chat_template_kwargs": {"b": 2}},
            {"chat_template_kwargs": {"a": 1, "b": 2}},
        ),
    ],
)
def test_the_settings_stand_beside_it_in_the_names_of_the_responses_api(
    settings, request_fields, expected
) -> None:
    assert sent(request_fields, **settings) == expected


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"input": "\xff"}', b'{"input": "a", "temprature": 1}'])
def test_what_is_no_request_is_refused(body) -> None:
    with pytest.raises(RequestError):
        Converter(ConverterSettings()).native.to_native(body, "engine")
