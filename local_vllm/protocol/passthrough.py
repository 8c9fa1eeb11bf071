"""A Chat Completions request, read just far enough to apply a server's settings; what it says is copied.
What the settings decide is left to `precedence.py`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from local_vllm.protocol.precedence import Fields, canonical
from local_vllm.protocol.request import check_is_text, decode_part
from local_vllm.protocol.vllm_fields import RESERVED

_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_messages = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_decode_name = msgspec.json.Decoder(str | None).decode
_decode_switch = msgspec.json.Decoder(bool | None).decode
_decode_metadata = msgspec.json.Decoder(dict[str, str] | None).decode


class ChatRequest(Struct, frozen=True):
    """`kept` goes to the engine as it is; `fields` may be decided elsewhere."""

    kept: Fields
    fields: Fields
    metadata: dict[str, str] | None
    model: str | None
    session_hint: str | None
    stream: bool


def read_chat(body: bytes) -> ChatRequest:
    """Raises RequestError for a body that is no JSON object, and for what is read here and is of another type."""
    check_is_text(body)
    given = decode_part(_decode_fields, body)
    return ChatRequest(
        {name: given[name] for name in given.keys() & RESERVED if name != "model"},
        canonical(given),
        _optional(_decode_metadata, given, "metadata"),
        _optional(_decode_name, given, "model"),
        _optional(_decode_name, given, "prompt_cache_key"),
        bool(_optional(_decode_switch, given, "stream")),
    )


def _optional(decode: Any, given: dict[str, Raw], name: str) -> Any:
    return decode_part(decode, given[name], name) if name in given else None


def without_developer(kept: Fields) -> Fields:
    """The same with the role `developer` called `system`; all else is copied."""
    messages = kept.get("messages")
    if messages is None or b'"developer"' not in bytes(messages):
        return kept
    found = decode_part(_decode_messages, messages, "messages")
    return kept | {"messages": [_renamed(message) for message in found]}


def _renamed(message: dict[str, Raw]) -> dict[str, Raw]:
    if bytes(message.get("role", b"")) != b'"developer"':
        return message
    return message | {"role": Raw(b'"system"')}
