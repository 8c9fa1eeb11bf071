"""The events of the Responses API as bytes of server-sent events. Which of them a stream has, and in which
order, is left to `events.py`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from local_vllm.protocol.fold import Grew
from local_vllm.protocol.items import (
    CustomToolCallItem,
    FunctionCallItem,
    Growing,
    GrowingCall,
    GrowingCustomToolCall,
    GrowingReasoning,
    GrowingRefusal,
    Message,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Refusal,
)

_encode = msgspec.json.Encoder().encode

# What the events of an item's text are called.
_TEXT, _CALL = b"output_text", b"function_call_arguments"
_NAMES: dict[type[Growing], bytes] = {
    GrowingReasoning: b"reasoning_text",
    GrowingRefusal: b"refusal",
    GrowingCustomToolCall: b"custom_tool_call_input",
}
_EMPTY_TEXT = OutputText("")
_EMPTY_PARTS: dict[type[Growing], Any] = {GrowingReasoning: ReasoningText(""), GrowingRefusal: Refusal("")}


class EventWriter:
    """Writes the events of one stream, with contiguous sequence numbers."""

    def __init__(self) -> None:
        self._sequence = 0

    def event(self, name: bytes, fields: bytes) -> bytes:
        """`fields` are the members of a JSON object, without its braces."""
        return self.numbered(head(name, fields))

    def numbered(self, head: bytes) -> bytes:
        """The event that begins with `head`."""
        number = self._sequence
        self._sequence = number + 1
        return b'%b,"sequence_number":%d}\n\n' % (head, number)

    def of_response(self, name: bytes, response: bytes) -> bytes:
        return self.event(name, b'"response":' + response)

    def beginning(self, response: bytes) -> bytes:
        return self.of_response(b"created", response) + self.of_response(b"in_progress", response)


def head(name: bytes, fields: bytes) -> bytes:
    """An event up to its sequence number."""
    return b'event: response.%b\ndata: {"type":"response.%b",%b' % (name, name, fields)


class ItemWriter:
    """Writes the events of one item. What is the same in all of them is prepared when it begins."""

    def __init__(self, write: EventWriter, growing: Growing) -> None:
        is_call = isinstance(growing, GrowingCall)
        self._write = write
        self._name = _NAMES.get(type(growing), _CALL if is_call else _TEXT)
        self._index = b'"output_index":%d' % growing.index
        self._where = b'"item_id":%b,%b' % (_encode(growing.id), self._index)
        if not is_call:
            self._where += b',"content_index":0'
        logprobs = b',"logprobs":[]' if self._name is _TEXT else b""
        self._delta = head(self._name + b".delta", self._where + logprobs + b',"delta":')

    def opened(self, growing: Growing) -> bytes:
        fields = self._index + b',"item":' + _encode(growing.begun())
        added = self._write.event(b"output_item.added", fields)
        if isinstance(growing, GrowingCall):
            return added
        return added + self._part(b"content_part.added", _EMPTY_PARTS.get(type(growing), _EMPTY_TEXT))

    def grew(self, step: Grew) -> bytes:
        if step.logprobs and self._name is _TEXT:
            return self._grew_with_logprobs(step)
        return self._write.numbered(self._delta + _encode(step.text))

    def _grew_with_logprobs(self, step: Grew) -> bytes:
        fields = b'%b,"logprobs":%b,"delta":%b' % (self._where, _encode(step.logprobs), _encode(step.text))
        return self._write.event(self._name + b".delta", fields)

    def closed(self, item: OutputItem) -> bytes:
        done = self._write.event(self._name + b".done", self._where + _whole_text(item))
        if isinstance(item, Message | ReasoningItem):
            done += self._part(b"content_part.done", item.content[0])
        return done + self._write.event(b"output_item.done", self._index + b',"item":' + _encode(item))

    def _part(self, name: bytes, part: Any) -> bytes:
        return self._write.event(name, self._where + b',"part":' + _encode(part))


def _whole_text(item: OutputItem) -> bytes:
    match item:
        case FunctionCallItem():
            return b',"name":%b,"arguments":%b' % (_encode(item.name), _encode(item.arguments))
        case CustomToolCallItem():
            return b',"input":' + _encode(item.input)
    match part := item.content[0]:
        case Refusal():
            return b',"refusal":' + _encode(part.refusal)
        case OutputText():
            return b',"text":%b,"logprobs":%b' % (_encode(part.text), _encode(part.logprobs))
    return b',"text":' + _encode(part.text)
