"""The output items of a response, as OpenAI's schema has them, and how each grows from pieces.
Which piece belongs to which item is left to `fold.py`.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from local_vllm.protocol.tokens import Tokens

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, tag="output_text", tag_field="type", gc=False):
    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[()] = ()


class Refusal(Struct, tag="refusal", tag_field="type", gc=False):
    refusal: str


class ReasoningText(Struct, tag="reasoning_text", tag_field="type", gc=False):
    text: str


class _WithTokens(Struct, kw_only=True, gc=False):
    """The last item of a turn carries the turn's token ids, when they were asked for."""

    prompt_token_ids: Raw | UnsetType = UNSET
    generation_token_ids: Raw | UnsetType = UNSET
    generation_log_probs: Raw | UnsetType = UNSET

    def carry(self, tokens: Tokens) -> None:
        self.prompt_token_ids = tokens.prompt
        self.generation_token_ids = tokens.generation
        self.generation_log_probs = tokens.log_probs


class Message(_WithTokens, tag="message", tag_field="type", gc=False):
    id: str
    content: list[OutputText | Refusal]
    status: Status
    role: str = "assistant"


class ReasoningItem(_WithTokens, tag="reasoning", tag_field="type", gc=False):
    id: str
    content: list[ReasoningText]
    status: Status
    summary: tuple[()] = ()
    encrypted_content: None = None


class FunctionCallItem(_WithTokens, tag="function_call", tag_field="type", gc=False):
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class CustomToolCallItem(_WithTokens, tag="custom_tool_call", tag_field="type", gc=False):
    id: str
    call_id: str
    name: str
    input: str
    status: Status


OutputItem = Message | ReasoningItem | FunctionCallItem | CustomToolCallItem


class Growing:
    """An item that is still being written. `item` gives it as it stands."""

    __slots__ = ("id", "pieces")

    def __init__(self, id: str) -> None:
        self.id = id
        self.pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def item(self, status: Status) -> OutputItem:
        raise NotImplementedError


class GrowingMessage(Growing):
    __slots__ = ()

    def item(self, status: Status) -> Message:
        return Message(id=self.id, content=[OutputText(self.text)], status=status)


class GrowingRefusal(Growing):
    __slots__ = ()

    def item(self, status: Status) -> Message:
        return Message(id=self.id, content=[Refusal(self.text)], status=status)


class GrowingReasoning(Growing):
    __slots__ = ()

    def item(self, status: Status) -> ReasoningItem:
        return ReasoningItem(id=self.id, content=[ReasoningText(self.text)], status=status)


class GrowingFunctionCall(Growing):
    __slots__ = ("call_id", "name")

    def __init__(self, id: str, call_id: str, name: str) -> None:
        super().__init__(id)
        self.call_id = call_id
        self.name = name

    def item(self, status: Status) -> FunctionCallItem | CustomToolCallItem:
        return FunctionCallItem(
            id=self.id, call_id=self.call_id, name=self.name, arguments=self.text, status=status
        )


class GrowingCustomToolCall(GrowingFunctionCall):
    __slots__ = ()

    def item(self, status: Status) -> CustomToolCallItem:
        return CustomToolCallItem(
            id=self.id, call_id=self.call_id, name=self.name, input=_custom_input(self.text), status=status
        )


class _CustomArguments(Struct, gc=False):
    input: str


_decode_custom = msgspec.json.Decoder(_CustomArguments).decode


def _custom_input(arguments: str) -> str:
    """The one string of a custom tool's call; arguments of another shape stay as the model wrote them."""
    try:
        return _decode_custom(arguments.encode("utf-8", "surrogatepass")).input
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return arguments
