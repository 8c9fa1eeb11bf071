"""Requests for an engine that answers the Responses API itself: the caller's own bytes, with the server's
settings beside them. Their answers are the engine's.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from local_vllm.protocol.calls import RESPONSES, ChatCall
from local_vllm.protocol.precedence import Fields, metadata_fields, overlay
from local_vllm.protocol.request import check_is_text, check_names, decode_part

_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_metadata = msgspec.json.Decoder(dict[str, Any] | None).decode
_decode_text = msgspec.json.Decoder(str | None).decode
# Chat's names, which the settings are in -> those of the Responses API
_NAMES = {"max_completion_tokens": "max_output_tokens"}


class NativeRequests:
    """Applies a server's settings, given in chat's names, to Responses requests."""

    def __init__(self, server: Fields, overrides: Fields) -> None:
        self._server = server
        self._overrides = overrides

    def to_native(self, body: bytes, model: str) -> ChatCall:
        """Raises RequestError for a body that is no JSON object, and for misspelled fields."""
        check_is_text(body)
        given = decode_part(_decode_fields, body)
        check_names(given)
        fields = _in_responses_names(overlay(self._server, metadata_fields(_metadata(given))))
        sent = overlay(fields, _without_nulls(given) | {"model": Raw(_encode(model))})
        sent = overlay(sent, _in_responses_names(self._overrides)) if self._overrides else sent
        return ChatCall(
            _encode(sent),
            bytes(given.get("stream", b"")) == b"true",
            _text(given, "model"),
            _text(given, "prompt_cache_key"),
            path=RESPONSES,
        )


def _in_responses_names(fields: Fields) -> Fields:
    renamed = {_NAMES.get(name, name): value for name, value in fields.items()}
    if "reasoning_effort" in renamed:
        renamed["reasoning"] = {"effort": renamed.pop("reasoning_effort")}
    return renamed


def _without_nulls(given: Fields) -> Fields:
    return {name: value for name, value in given.items() if bytes(memoryview(value)[:4]) != b"null"}


def _metadata(given: Fields) -> dict[str, str]:
    found = decode_part(_decode_metadata, given["metadata"], "metadata") if "metadata" in given else None
    return {name: value for name, value in (found or {}).items() if isinstance(value, str)}


def _text(given: Fields, name: str) -> str | None:
    return decode_part(_decode_text, given[name], name) if name in given else None
