"""Rows and responses as JSON that is cut and joined: what is not looked at stays as it came.

Token ids of a long rollout are megabytes, and none of this package's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from local_vllm.errors import RequestError

Fields = dict[str, Raw]

REQUEST = "responses_create_params"
RESPONSE = "response"

encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(Fields).decode


@dataclass(frozen=True, slots=True)
class InputRow:
    """One row of input: all its fields, and those of the request in it."""

    fields: Fields
    request: Fields

    @property
    def body(self) -> bytes:
        return encode(self.fields)


def read_row(body: bytes) -> InputRow:
    """A row as it came over HTTP. Raises RequestError (400) for what is none."""
    fields = fields_of(body, "row")
    if REQUEST not in fields:
        raise RequestError(
            f"Missing required parameter: '{REQUEST}', the Responses request of the row.",
            param=REQUEST,
            code="missing_required_parameter",
        )
    return InputRow(fields, fields_of(fields[REQUEST], REQUEST))


def fields_of(body: bytes | Raw, what: str) -> Fields:
    """The fields of a JSON object, on one line each. Raises RequestError, which calls it `what`."""
    try:
        return _decode_fields(on_one_line(body) if isinstance(body, bytes) else body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        message = f"The {what} has to be a JSON object: {str(problem).replace('`', '')}."
        raise RequestError(message, param=what, code="invalid_json") from problem


def on_one_line(body: bytes) -> bytes:
    """JSON without line breaks between its parts; inside a string a line break is no JSON."""
    return body.translate(None, b"\r\n") if b"\n" in body or b"\r" in body else body


def output_row(row: Mapping[str, Raw], response: bytes, verdict: Mapping[str, Raw]) -> bytes:
    """A finished rollout on one line: the row as it came, the response, and the verdict with its reward."""
    return encode({**row, RESPONSE: Raw(response), **verdict})


def same_value(one: Raw, other: Raw) -> bool:
    """Whether two pieces of JSON say the same."""
    value: Any = msgspec.json.decode(one)
    return bool(value == msgspec.json.decode(other))
