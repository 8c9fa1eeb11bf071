"""The `model` of a request, found without reading the rest of it."""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

from local_vllm.protocol.request import decode_part


class _Peeked(Struct, gc=False):
    model: str | None = None


# Plain ASCII without escapes is the same in JSON and out of it.
_FIRST_FIELD = re.compile(rb'\s*\{\s*"model"\s*:\s*"([ !#-\[\]-~]*)"')
_decode_model = msgspec.json.Decoder(_Peeked).decode


def peek_model(body: bytes) -> str | None:
    """The `model` of any request, decoding nothing else. Raises RequestError for a body that is no JSON
    object, if it looked that far: a model that comes first is taken without reading on.
    """
    if first := _FIRST_FIELD.match(body):
        return first[1].decode()
    return decode_part(_decode_model, body).model
