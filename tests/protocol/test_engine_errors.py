"""An engine's error reaches the client as OpenAI's error object, with the engine's status and message."""

from __future__ import annotations

import json

import pytest
from openai.types.responses import Response

from local_vllm.errors import RequestError, UpstreamError
from local_vllm.protocol.converter import Converter, error_body
from local_vllm.protocol.settings import ConverterSettings


def vllm(message, type="BadRequestError", param=None, code=400):
    return json.dumps({"error": {"message": message, "type": type, "param": param, "code": code}}).encode()


def failure(status, raw, *, chat=False, **settings):
    converter = Converter(ConverterSettings(**settings))
    call = (
        converter.chat_passthrough(b'{"messages":[]}', "e")
        if chat
        else converter.to_chat(b'{"input":"a"}', "e")
    )
    done = converter.from_failure(call, status, raw)
    return done.status, json.loads(done.body)


@pytest.mark.parametrize(
    ("status", "raw", "expected"),
    [
        (400, vllm("bad", param="temperature"), ("bad", "invalid_request_error", "temperature", None)),
        (400, vllm("bad", param="messages"), ("bad", "invalid_request_error", "input", None)),
        (
            400,
            vllm("bad", param="max_completion_tokens"),
            ("bad", "invalid_request_error", "max_output_tokens", None),
        ),
        (404, vllm("no model", "NotFoundError"), ("no model", "invalid_request_error", None, "not_found")),
        (401, b'{"error":"Unauthorized"}', ("Unauthorized", "authentication_error", None, "invalid_api_key")),
        (429, vllm("slow"), ("slow", "rate_limit_error", None, "rate_limit_exceeded")),
        (500, vllm("oops", "InternalServerError"), ("oops", "server_error", None, "server_error")),
        (503, vllm("busy"), ("busy", "server_error", None, "service_unavailable")),
        (418, vllm("tea"), ("tea", "invalid_request_error", None, None)),
        (
            400,
            b'{"object":"error","message":"old","type":"x","param":null,"code":400}',
            ("old", "invalid_request_error", None, None),
        ),
        (422, b'{"detail":"wrong"}', ("wrong", "invalid_request_error", None, None)),
        (422, b'{"detail":[{"loc":1}]}', ('[{"loc":1}]', "invalid_request_error", None, None)),
        (502, b"<h1>Bad Gateway</h1>", ("<h1>Bad Gateway</h1>", "server_error", None, "server_error")),
        (502, b"\xff", ("\ufffd", "server_error", None, "server_error")),
        (500, b"", ("The engine gave no reason.", "server_error", None, "server_error")),
        (500, b"3", ("3", "server_error", None, "server_error")),
    ],
)
def test_status_and_message_are_kept_and_the_type_is_openai_s(status, raw, expected):
    message, kind, param, code = expected
    assert failure(status, raw) == (
        status,
        {"error": {"message": message, "type": kind, "param": param, "code": code}},
    )


OVERFLOWS = [
    (
        vllm(
            "This model's maximum context length is 64 tokens. However, your prompt contains at least 65 "
            "input tokens, which exceeds this limit even without any output tokens. Please reduce the length "
            "of the input prompt. "
            "(parameter=input_tokens, value=65)",
            param="input_tokens",
        ),
        "tokens",
        65,
        64,
    ),
    (
        vllm(
            "This model's maximum context length is 64 tokens. However, your prompt contains 9000 characters "
            "(more than 640 characters, which is the upper bound for 64 input tokens). Please reduce the "
            "length of the input prompt. "
            "(parameter=input_text, value=9000)",
            param="input_text",
        ),
        "characters",
        9000,
        640,
    ),
    (vllm("Input length (90) exceeds model's maximum context length (64)."), "tokens", 90, 64),
    (
        vllm("The decoder prompt (length 90) is longer than the maximum model length of 64. Make sure"),
        "tokens",
        90,
        64,
    ),
    (
        vllm(
            "The decoder prompt (length 64) plus the number of requested output tokens (at least 1) is "
            "longer than the maximum model length of 64. Make sure"
        ),
        "tokens",
        64,
        64,
    ),
]


@pytest.mark.parametrize(("raw", "unit", "asked", "limit"), OVERFLOWS)
def test_a_prompt_that_is_too_long_is_a_context_length_exceeded(raw, unit, asked, limit):
    status, body = failure(400, raw)
    assert (status, body["error"]["code"], body["error"]["param"]) == (
        400,
        "context_length_exceeded",
        "input",
    )
    assert body["error"]["message"] == json.loads(raw)["error"]["message"]
    assert failure(400, raw, chat=True, context_overflow="incomplete")[1]["error"]["param"] == "messages"


@pytest.mark.parametrize(("raw", "unit", "asked", "limit"), OVERFLOWS)
def test_it_is_an_incomplete_response_when_so_set(raw, unit, asked, limit):
    status, body = failure(400, raw, context_overflow="incomplete")
    Response.model_validate(body, strict=True)
    assert (status, body["status"], body["output"]) == (200, "incomplete", [])
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["metadata"] == {
        f"context_overflow_{unit}_asked": str(asked),
        f"context_overflow_{unit}_limit": str(limit),
    }
    assert (body["model"], body["completed_at"]) == ("e", None)


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (400, vllm("maximum context length")),
        (400, vllm("Tool 'input length (9) and context length (8)' is unknown")),
        (
            400,
            vllm(
                "This model's maximum context length is 64 tokens. However, you requested 70 tokens (6 in "
                "the messages, 64 in the completion)."
            ),
        ),
        (500, OVERFLOWS[0][0]),
        (
            400,
            vllm(
                "Input length (90) exceeds model's maximum context length (64).", type="InternalServerError"
            ),
        ),
    ],
)
def test_other_errors_that_speak_of_lengths_are_not(status, raw):
    assert (
        failure(status, raw, context_overflow="incomplete")[1]["error"]["code"] != "context_length_exceeded"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RequestError("no", param="a.b", code="x"), ("no", "invalid_request_error", "a.b", "x")),
        (UpstreamError("gone", code="bad_gateway"), ("gone", "server_error", None, "bad_gateway")),
        (ValueError("eh"), ("eh", "server_error", None, "server_error")),
    ],
)
def test_exceptions_have_an_error_object(error, expected):
    assert tuple(json.loads(error_body(error))["error"].values()) == expected
