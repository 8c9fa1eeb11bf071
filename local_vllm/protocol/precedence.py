"""Who decides a chat field: the caller, over the request's metadata, over the server's settings; and
`sampling_overrides` over all of them. Also brings fields with two names to one, so that a layer beats
another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from local_vllm.errors import RequestError
from local_vllm.protocol.request import decode_part
from local_vllm.protocol.vllm_fields import RESERVED

Fields = dict[str, Any]

# vLLM had these as fields of their own once; now they are parts of structured_outputs.
_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_whitespace_pattern": "whitespace_pattern",
}
_ALIASES = {
    "max_tokens": "max_completion_tokens",
    "max_output_tokens": "max_completion_tokens",
    "reasoning.effort": "reasoning_effort",
}
# The two ways to constrain an answer: a layer that uses one replaces what lower layers say in either.
_CONSTRAINTS = ("response_format", "structured_outputs")
_SPECIAL = frozenset({*_GUIDED, *_ALIASES, *RESERVED, "guided_decoding_backend", "reasoning"})

_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


def raw_fields(values: Mapping[str, Any] | None) -> Fields:
    """A setting's values as ready JSON, in chat's names."""
    return canonical({name: Raw(_encode(value)) for name, value in (values or {}).items()})


def canonical(fields: Fields) -> Fields:
    """One layer in chat's names; null is the same as absent."""
    if _SPECIAL.isdisjoint(fields):
        return {name: value for name, value in fields.items() if not _is_null(value)}
    plain: Fields = {}
    guided: Fields = {}
    for name, value in fields.items():
        if name in RESERVED or name == "guided_decoding_backend" or _is_null(value):
            continue
        if name in _GUIDED:
            guided[_GUIDED[name]] = value
        elif name == "reasoning":
            plain.update(_effort(value))
        else:
            plain.setdefault(_ALIASES.get(name, name), value)
    if guided:
        plain.setdefault("structured_outputs", guided)
    return plain


def _is_null(value: Any) -> bool:
    return value is None or (type(value) is Raw and bytes(memoryview(value)[:4]) == b"null")


def _effort(reasoning: Any) -> Fields:
    fields = decode_part(_decode_object, reasoning, "reasoning")
    return {"reasoning_effort": fields["effort"]} if "effort" in fields else {}


def overlay(lower: Fields, higher: Fields) -> Fields:
    """Both layers, the higher one deciding; `chat_template_kwargs` are decided key by key."""
    if not higher:
        return dict(lower)
    merged = lower | higher
    if any(name in higher for name in _CONSTRAINTS):
        for name in _CONSTRAINTS:
            if name in lower and name not in higher:
                del merged[name]
    if "chat_template_kwargs" in lower and "chat_template_kwargs" in higher:
        merged["chat_template_kwargs"] = _kwargs(lower) | _kwargs(higher)
    return merged


def _kwargs(layer: Fields) -> dict[str, Any]:
    value = layer["chat_template_kwargs"]
    if isinstance(value, dict):
        return value
    return decode_part(_decode_object, value, "chat_template_kwargs")


# ---- limits

_LIMITS = ("max_completion_tokens", "max_tokens")
_decode_limit = msgspec.json.Decoder(int, strict=False).decode


def with_lower_limit(body: bytes, limit: int) -> bytes | None:
    """A chat request whose limits on tokens are at most `limit`; None if they are that already."""
    fields = _decode_object(body)
    lowered = {name: limit for name in _LIMITS if name in fields and _is_above(fields[name], limit)}
    return _encode(fields | lowered) if lowered else None


def _is_above(field: Raw, limit: int) -> bool:
    """Engines take "100" and 100.0 for numbers too; what is none, they refuse themselves."""
    try:
        return _decode_limit(field) > limit
    except msgspec.DecodeError:
        return False


# ---- metadata: JSON objects as strings

_METADATA = ("extra_body", "chat_template_kwargs")


def metadata_fields(metadata: Mapping[str, str] | None) -> Fields:
    """The layer that a request's metadata holds. Raises RequestError when it is no JSON object."""
    if not metadata or all(name not in metadata for name in _METADATA):
        return {}
    layer = canonical(_json_object(metadata, "extra_body"))
    if kwargs := _json_object(metadata, "chat_template_kwargs"):
        layer = overlay(layer, {"chat_template_kwargs": kwargs})
    return layer


def _json_object(metadata: Mapping[str, str], name: str) -> Fields:
    text = metadata.get(name)
    if text is None:
        return {}
    try:
        return _decode_object(text.encode())
    except (msgspec.DecodeError, RecursionError, UnicodeError) as problem:
        raise RequestError(
            f"Invalid 'metadata.{name}': expected a JSON object as a string ({problem}).",
            param=f"metadata.{name}",
            code="invalid_value",
        ) from problem
