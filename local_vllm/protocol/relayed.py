"""Requests for an API that is no engine of vLLM's: the caller's own fields, with a server's settings beside them.
What such an API knows is its own affair, so names are not checked, and metadata is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from local_vllm.protocol.calls import CHAT, RESPONSES, ChatCall
from local_vllm.protocol.precedence import Fields
from local_vllm.protocol.request import check_is_text, decode_part

# Settings name a limit in any of three ways. The two APIs know it by different ones, and effort too.
_LIMITS = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"})
_EFFORTS = frozenset({"reasoning", "reasoning_effort", "reasoning.effort"})

_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode


class RelayedRequests:
    """What the caller sent decides over `extra_body`, and `overrides` over both; null is the same as absent."""

    def __init__(self, extra_body: Mapping[str, Any] | None, overrides: Mapping[str, Any] | None) -> None:
        self._extra = {path: _in_words_of(path, extra_body or {}) for path in (RESPONSES, CHAT)}
        self._overrides = {path: _in_words_of(path, overrides or {}) for path in (RESPONSES, CHAT)}

    def call(self, body: bytes, model: str, path: str) -> ChatCall:
        """Raises RequestError for a body that is no JSON object."""
        check_is_text(body)
        given = decode_part(_decode_fields, body)
        sent = _over(self._overrides[path], _over(given, self._extra[path]))
        return ChatCall(
            body=_encode(sent | {"model": model}),
            stream=bytes(given.get("stream", b"")) == b"true",
            model_asked=None,
            session_hint=_text(given.get("prompt_cache_key")),
            path=path,
        )


def _in_words_of(path: str, settings: Mapping[str, Any]) -> Fields:
    renamed = [_renamed(path, name, value) for name, value in settings.items()]
    return {name: value for name, value in renamed if value is not None}


def _renamed(path: str, name: str, value: Any) -> tuple[str, Any]:
    if name in _LIMITS:
        return "max_output_tokens" if path == RESPONSES else "max_completion_tokens", value
    if name in _EFFORTS and path == RESPONSES:
        return "reasoning", value if name == "reasoning" else {"effort": value}
    if name in _EFFORTS:
        return "reasoning_effort", value.get("effort") if isinstance(value, dict) else value
    return name, value


def _over(higher: Fields, lower: Fields) -> Fields:
    """Both, the higher one deciding about a field under each of its names."""
    if not higher or not lower:
        return higher or lower
    decided = {same for name, value in higher.items() if not _is_null(value) for same in _names_of(name)}
    kept = {name: value for name, value in lower.items() if name not in decided}
    return {name: value for name, value in higher.items() if name not in kept} | kept


def _names_of(name: str) -> frozenset[str]:
    return next((names for names in (_LIMITS, _EFFORTS) if name in names), frozenset({name}))


def _is_null(value: Any) -> bool:
    return type(value) is Raw and bytes(value) == b"null"


def _text(value: Raw | None) -> str | None:
    found = msgspec.json.decode(value) if value is not None else None
    return found if isinstance(found, str) else None
