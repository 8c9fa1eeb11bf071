"""What goes on to another API is the caller's, with the server's settings beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from local_vllm.errors import RequestError
from local_vllm.protocol.calls import CHAT, RESPONSES
from local_vllm.protocol.relayed import RelayedRequests


def sent(given: dict[str, Any], path: str, extra: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    call = RelayedRequests(extra, overrides).call(json.dumps(given).encode(), "gpt-x", path)
    assert call.path == path
    body = json.loads(call.body)
    assert body.pop("model") == "gpt-x"
    return body


@pytest.mark.parametrize("path", [RESPONSES, CHAT])
def test_without_settings_all_is_as_the_caller_wrote_it(path: str) -> None:
    given = {"temperature": None, "anything": [1, {"else": None}], "max_tokens": 1, "max_output_tokens": 2}
    assert sent(given, path, {}, {}) == given


@pytest.mark.parametrize(
    ("given", "extra", "overrides", "expected"),
    [
        ({"a": 1}, {"b": 2}, {}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": 2}, {}, {"a": 1}),
        ({"a": None, "b": None}, {"a": 2}, {}, {"a": 2, "b": None}),
        ({"a": 1}, {"a": 2}, {"a": 3}, {"a": 3}),
        ({"a": 1}, {"b": None}, {"a": None}, {"a": 1}),
        ({"metadata": {"extra_body": '{"a": 1}'}}, {"a": 2}, {}, {"metadata": {"extra_body": '{"a": 1}'}, "a": 2}),
    ],
)
@pytest.mark.parametrize("path", [RESPONSES, CHAT])
def test_the_caller_decides_over_the_extra_body_and_the_overrides_over_both(
    path: str, given: dict, extra: dict, overrides: dict, expected: dict
) -> None:
    assert sent(given, path, extra, overrides) == expected


@pytest.mark.parametrize(
    ("path", "given", "extra", "overrides", "expected"),
    [
        (RESPONSES, {}, {"max_tokens": 5}, {}, {"max_output_tokens": 5}),
        (CHAT, {}, {"max_output_tokens": 5}, {}, {"max_completion_tokens": 5}),
        (CHAT, {"max_tokens": 1}, {"max_output_tokens": 5}, {}, {"max_tokens": 1}),
        (CHAT, {"max_tokens": 1}, {}, {"max_tokens": 5}, {"max_completion_tokens": 5}),
        (RESPONSES, {}, {"reasoning_effort": "low"}, {}, {"reasoning": {"effort": "low"}}),
        (RESPONSES, {}, {"reasoning": {"summary": "auto"}}, {}, {"reasoning": {"summary": "auto"}}),
        (CHAT, {}, {"reasoning": {"effort": "low", "summary": "auto"}}, {}, {"reasoning_effort": "low"}),
        (CHAT, {}, {"reasoning": {"summary": "auto"}}, {}, {}),
        (CHAT, {"reasoning_effort": "high"}, {"reasoning": {"effort": "low"}}, {}, {"reasoning_effort": "high"}),
    ],
)
def test_limits_and_effort_are_one_field_under_several_names(
    path: str, given: dict, extra: dict, overrides: dict, expected: dict
) -> None:
    assert sent(given, path, extra, overrides) == expected


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"a": "\xff"}', b"[" * 100_000])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        RelayedRequests({}, {}).call(body, "m", RESPONSES)


def test_the_settings_of_an_earlier_request_are_not_changed_by_it() -> None:
    requests = RelayedRequests({"a": 1}, {"b": 2})
    requests.call(b'{"a": 5}', "m", RESPONSES)
    assert json.loads(requests.call(b"{}", "m", RESPONSES).body) == {"a": 1, "b": 2, "model": "m"}
