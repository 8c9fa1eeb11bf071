"""The output items of a response, as OpenAI's schema has them, and how each grows from pieces.
Which piece belongs to which item is left to `fold.py`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from local_vllm.protocol.chat_tools import Callee
from local_vllm.protocol.custom_input import CustomInput
from local_vllm.protocol.tokens import Tokens

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, tag="output_text", tag_field="type", gc=False):
    text: str
    annotations: tuple[()] = ()
    logprobs: list[Raw] | tuple[()] = ()


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
    namespace: str | UnsetType = UNSET


class CustomToolCallItem(_WithTokens, tag="custom_tool_call", tag_field="type", gc=False):
    id: str
    call_id: str
    name: str
    input: str
    status: Status
    namespace: str | UnsetType = UNSET


OutputItem = Message | ReasoningItem | FunctionCallItem | CustomToolCallItem


class Growing:
    """An item that is still being written, at `index` of the output."""

    __slots__ = ("id", "index", "pieces", "logprobs", "is_closed")

    def __init__(self, id: str, index: int) -> None:
        self.id = id
        self.index = index
        self.pieces: list[str] = []
        self.logprobs: list[Raw] = []
        self.is_closed = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def seen(self, piece: str) -> str:
        """What a client sees of a piece that the model wrote."""
        return piece

    def rest(self) -> str:
        """What a client has not seen yet, when nothing follows."""
        return ""

    def begun(self) -> OutputItem:
        """The item as it is announced: without content."""
        raise NotImplementedError

    def item(self, status: Status) -> OutputItem:
        """The item as it stands."""
        raise NotImplementedError


class GrowingMessage(Growing):
    __slots__ = ()

    def begun(self) -> Message:
        return Message(id=self.id, content=[], status="in_progress")

    def item(self, status: Status) -> Message:
        return Message(id=self.id, content=[OutputText(self.text, logprobs=self.logprobs)], status=status)


class GrowingRefusal(GrowingMessage):
    __slots__ = ()

    def item(self, status: Status) -> Message:
        return Message(id=self.id, content=[Refusal(self.text)], status=status)


class GrowingReasoning(Growing):
    __slots__ = ()

    def begun(self) -> ReasoningItem:
        return ReasoningItem(id=self.id, content=[], status="in_progress")

    def item(self, status: Status) -> ReasoningItem:
        return ReasoningItem(id=self.id, content=[ReasoningText(self.text)], status=status)


class GrowingCall(Growing):
    """A call of a tool. `text` is its arguments, or the input of a custom tool."""

    __slots__ = ("call_id", "name", "namespace")

    def __init__(self, id: str, index: int, call_id: str, callee: Callee) -> None:
        super().__init__(id, index)
        self.call_id = call_id
        self.name = callee.name
        self.namespace = callee.namespace

    def begun(self) -> FunctionCallItem | CustomToolCallItem:
        return self._written("", "in_progress")

    def item(self, status: Status) -> FunctionCallItem | CustomToolCallItem:
        return self._written(self.text, status)

    def _written(self, text: str, status: Status) -> FunctionCallItem | CustomToolCallItem:
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        return {"id": self.id, "call_id": self.call_id, "name": self.name, "namespace": self.namespace}

    @property
    def is_whole(self) -> bool:
        """Whether its arguments are a JSON object to the end: then nothing can follow."""
        raise NotImplementedError


class GrowingFunctionCall(GrowingCall):
    __slots__ = ()

    @property
    def is_whole(self) -> bool:
        return _is_object(self.text)

    def _written(self, text: str, status: Status) -> FunctionCallItem:
        return FunctionCallItem(arguments=text, status=status, **self._identity())


class GrowingCustomToolCall(GrowingCall):
    __slots__ = ("_input", "_json")

    def __init__(self, id: str, index: int, call_id: str, callee: Callee) -> None:
        super().__init__(id, index, call_id, callee)
        self._input = CustomInput()
        self._json: list[str] = []

    @property
    def is_whole(self) -> bool:
        return _is_object("".join(self._json))

    def seen(self, piece: str) -> str:
        self._json.append(piece)
        return self._input.feed(piece)

    def rest(self) -> str:
        return self._input.rest()

    def _written(self, text: str, status: Status) -> CustomToolCallItem:
        return CustomToolCallItem(input=text, status=status, **self._identity())


def _is_object(arguments: str) -> bool:
    if not arguments.rstrip().endswith("}"):
        return False
    try:
        _decode_object(arguments.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False
    return True


_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
