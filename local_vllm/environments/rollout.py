"""A finished rollout as `verify` looks at it, and the verdict that it gives.

What was generated is decoded on demand, and token ids are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from msgspec import Raw, Struct
from pydantic import BaseModel, ConfigDict, Field

Row = TypeVar("Row")
Session = TypeVar("Session")


class Verdict(BaseModel):
    """What `verify` returns: the reward, and any further fields, which stand in the output row beside it."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    reward: float = Field(description="What the rollout is worth to a learner; any finite number.")

    if TYPE_CHECKING:

        def __init__(self, *, reward: float, **further: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool: its arguments, None where they are no JSON object, and what was answered."""

    name: str
    arguments: dict[str, Any] | None
    output: str | None


_TEXTS = ("output_text", "input_text", "text")


class _Part(Struct, gc=False):
    type: str = ""
    text: str = ""


class _Item(Struct, gc=False):
    type: str = "message"
    role: str | None = None
    content: str | list[_Part] | None = None
    name: str = ""
    arguments: str = ""
    call_id: str = ""
    output: Raw = Raw(b'""')


class _Response(Struct, gc=False):
    output: list[_Item] = []
    status: str | None = None


class _Request(Struct, gc=False):
    input: str | list[_Item] = ""


_decode_response = msgspec.json.Decoder(_Response).decode
_decode_request = msgspec.json.Decoder(_Request).decode
_decode_arguments = msgspec.json.Decoder(dict[str, Any]).decode


class Rollout(Generic[Row, Session]):
    """`row` is the input row, as the environment's `Row`; `session` is what the tools worked on."""

    def __init__(self, row: Row, session: Session, *, request: Raw, response: bytes) -> None:
        self.row = row
        self.session = session
        self.response_json = response
        self._request = request

    @cached_property
    def response(self) -> dict[str, Any]:
        """The whole response, decoded: dear where it carries token ids."""
        found: dict[str, Any] = msgspec.json.decode(self.response_json)
        return found

    @property
    def status(self) -> str | None:
        """`completed`; or `incomplete` for one that ran out of context, of tokens or of steps."""
        return self._read.status

    @cached_property
    def text(self) -> str:
        """What the model said last: the text of the last message, empty if a call came after it."""
        for item in reversed(self._read.output):
            if item.type == "message":
                return _text(item)
            if item.type != "reasoning":
                return ""
        return ""

    @cached_property
    def question(self) -> str:
        """What the user asked: the text of the last user message of the row's request."""
        asked = _decode_request(self._request).input
        if isinstance(asked, str):
            return asked
        return next((_text(item) for item in reversed(asked) if item.role == "user"), "")

    @cached_property
    def calls(self) -> Sequence[Call]:
        """The calls of functions in order, those that went wrong among them."""
        items = self._read.output
        outputs = {item.call_id: item.output for item in items if item.type == "function_call_output"}
        return tuple(
            _call(item, outputs.get(item.call_id)) for item in items if item.type == "function_call"
        )

    @cached_property
    def _read(self) -> _Response:
        return _decode_response(self.response_json)


def _text(item: _Item) -> str:
    if isinstance(item.content, str):
        return item.content
    return "".join(part.text for part in item.content or () if part.type in _TEXTS)


def _call(item: _Item, output: Raw | None) -> Call:
    try:
        arguments = _decode_arguments(item.arguments)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        arguments = None
    return Call(item.name, arguments, None if output is None else _output(bytes(output)))


def _output(answered: bytes) -> str:
    """A text as it is; parts of another kind as JSON."""
    return str(msgspec.json.decode(answered)) if answered[:1] == b'"' else answered.decode()
