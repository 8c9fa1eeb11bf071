"""Input items -> chat messages. An assistant's text, reasoning and parallel calls that stand side by side
become one message, as the model wrote them. Checks what items mean together; their types were checked by
`request.py`, and what stands inside one is `content.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, Struct

from local_vllm.errors import RequestError
from local_vllm.protocol.chat import ChatMessage, FunctionCall, ToolCall
from local_vllm.protocol.chat_tools import name_in_chat
from local_vllm.protocol.content import assistant_text, input_content, with_audio
from local_vllm.protocol.errors import missing
from local_vllm.protocol.reasoning import THINK, Tags
from local_vllm.protocol.request import InputItem
from local_vllm.protocol.supplied import is_reference

_encode = msgspec.json.Encoder().encode


class History(Struct, frozen=True):
    """How earlier turns are told to the model. Its reasoning stands in a field of its own, inside the text
    between `tags`, or nowhere.
    """

    developer_role: str = "developer"
    reasoning: Literal["field", "text", "left_out"] = "field"
    tags: Tags = THINK


def to_messages(
    instructions: str | None,
    given: str | list[InputItem] | None,
    *,
    earlier: Sequence[InputItem] = (),
    audio: Sequence[str] = (),
    history: History = History(),
) -> list[ChatMessage]:
    """The chat messages of a request. `earlier` items come before those `given`, and `audio` (URLs) goes to
    the last message of the user. Raises RequestError naming the item at fault.
    """
    if given is None:
        raise missing("input")
    messages = _read(given, earlier, history)
    if instructions:
        messages.insert(0, ChatMessage("system", instructions))
    if audio:
        _attach(audio, messages)
    if not messages:
        raise RequestError("'input' must hold at least one item.", param="input", code="invalid_value")
    return messages


def ends_in_reasoning(items: Sequence[InputItem]) -> bool:
    """Whether the last turn is the assistant's, and holds nothing but reasoning."""
    for item in reversed(items):
        if item.role != "assistant":
            return item.type == "reasoning"
        if assistant_text(item.content or "", "input"):
            return False
    return False


def _read(
    given: str | list[InputItem], earlier: Sequence[InputItem], history: History
) -> list[ChatMessage]:
    if not isinstance(given, str):
        return _Conversation(history).read(earlier, given)
    before = _Conversation(history).read(earlier, []) if earlier else []
    return [*before, ChatMessage("user", given)]


def _attach(audio: Sequence[str], messages: list[ChatMessage]) -> None:
    for message in reversed(messages):
        if message.role == "user":
            message.content = with_audio(message.content, audio)
            return
    messages.append(ChatMessage("user", with_audio(None, audio)))


class _Conversation:
    """Reads items in order. `turn` is the assistant's message, while the items are its; `position` is that of the item
    that is read among those of the request, None before they begin.
    """

    def __init__(self, history: History) -> None:
        self.messages: list[ChatMessage] = []
        self.turn: ChatMessage | None = None
        self.answered: dict[str, bool] = {}  # call id -> whether its output was seen
        self.history = history
        self.position: int | None = None

    def read(self, earlier: Sequence[InputItem], given: list[InputItem]) -> list[ChatMessage]:
        for item in earlier:
            (_READERS.get(item.type) or _reader_of_untyped)(self, item)
        for self.position, item in enumerate(given):
            (_READERS.get(item.type) or _reader_of_untyped)(self, item)
        self._check_all_answered()
        if self.history.reasoning == "text":
            self._move_reasoning_into_text()
        return self.messages

    @property
    def where(self) -> str:
        """How errors name the item that is read."""
        return "previous_response_id" if self.position is None else f"input[{self.position}]"

    # -- one method for each type of item

    def message(self, item: InputItem) -> None:
        role, content = item.role, item.content
        if role is None:
            raise missing(f"{self.where}.role")
        if content is None:
            raise missing(f"{self.where}.content")
        if role == "assistant":
            return self._say(content if type(content) is str else assistant_text(content, f"{self.where}.content"))
        if type(content) is not str:
            content = input_content(content, f"{self.where}.content")
        self.messages.append(ChatMessage(self.history.developer_role if role == "developer" else role, content))
        self.turn = None

    def reasoning(self, item: InputItem) -> None:
        text = _reasoning_text(item)
        if not text or self.history.reasoning == "left_out":
            return
        turn = self._open_turn(
            new=self.turn is not None and bool(self.turn.content) and not self._has_calls()
        )
        turn.reasoning = text if turn.reasoning is UNSET else f"{turn.reasoning}\n{text}"

    def function_call(self, item: InputItem) -> None:
        arguments = item.arguments
        if arguments is None:
            raise missing(f"{self.where}.arguments")
        self._call(item, arguments)

    def custom_tool_call(self, item: InputItem) -> None:
        if item.input is None:
            raise missing(f"{self.where}.input")
        self._call(item, _encode({"input": item.input}).decode())

    def call_output(self, item: InputItem) -> None:
        call_id = item.call_id
        if call_id is None:
            raise missing(f"{self.where}.call_id")
        content = item.output
        if content is None:
            raise missing(f"{self.where}.output")
        if self.answered.get(call_id) is not False:
            raise self._unasked(call_id, f"{self.where}.call_id")
        self.answered[call_id] = True
        if type(content) is not str:
            content = input_content(content, f"{self.where}.output")
        self.messages.append(ChatMessage("tool", content, tool_call_id=call_id))
        self.turn = None

    # -- what they share

    def _open_turn(self, *, new: bool = False) -> ChatMessage:
        turn = self.turn
        if turn is None or new:
            turn = self.turn = ChatMessage("assistant")
            self.messages.append(turn)
        return turn

    def _has_calls(self) -> bool:
        return self.turn is not None and self.turn.tool_calls is not UNSET

    def _say(self, text: str) -> None:
        """A second text begins a new message, unless calls wait for their outputs, which follow at once."""
        spoken = self.turn is not None and self.turn.content is not None
        turn = self._open_turn(new=spoken and not self._has_calls())
        turn.content = text if turn.content is None else f"{turn.content}{text}"

    def _call(self, item: InputItem, arguments: str) -> None:
        call_id, name = item.call_id, item.name
        if not call_id:
            raise missing(f"{self.where}.call_id")
        if not name:
            raise missing(f"{self.where}.name")
        if call_id in self.answered:
            raise _wrong(f"Duplicate call_id '{call_id}'.", f"{self.where}.call_id")
        self.answered[call_id] = False
        if item.namespace is not None:
            name = name_in_chat(item.namespace, name)
        call = ToolCall(call_id, FunctionCall(name, arguments))
        turn = self.turn
        if turn is None:
            self.turn = turn = ChatMessage("assistant", tool_calls=[call])
            self.messages.append(turn)
        elif turn.tool_calls is UNSET:
            turn.tool_calls = [call]
        else:
            turn.tool_calls.append(call)

    def _unasked(self, call_id: str, param: str) -> RequestError:
        if call_id in self.answered:
            return _wrong(f"Duplicate output for the tool call with call_id '{call_id}'.", param)
        return _wrong(f"No tool call found for function call output with call_id '{call_id}'.", param)

    def _check_all_answered(self) -> None:
        if False in self.answered.values():
            call_id = next(call_id for call_id, answered in self.answered.items() if not answered)
            raise _wrong(f"No tool output found for function call '{call_id}'.", "input")

    def _move_reasoning_into_text(self) -> None:
        opening, closing = self.history.tags
        for message in self.messages:
            if message.reasoning is not UNSET:
                message.content = f"{opening}{message.reasoning}{closing}{message.content or ''}"
                message.reasoning = UNSET


def _reader_of_untyped(conversation: _Conversation, item: InputItem) -> None:
    """OpenAI's clients may leave the type of a message out; any other item has one of ours."""
    kind = item.type or ("item_reference" if is_reference(item) else "message")
    if kind not in _READERS:
        raise _unsupported(kind, conversation.where, item)
    conversation.message(item)


_READERS: dict[str | None, Callable[[_Conversation, InputItem], None]] = {
    "message": _Conversation.message,
    "reasoning": _Conversation.reasoning,
    "function_call": _Conversation.function_call,
    "function_call_output": _Conversation.call_output,
    "custom_tool_call": _Conversation.custom_tool_call,
    "custom_tool_call_output": _Conversation.call_output,
}


ITEM_TYPES = tuple(_READERS)


def _reasoning_text(item: InputItem) -> str:
    """The reasoning itself if the item has it, else its summary. Encrypted reasoning is left out."""
    content = item.content if isinstance(item.content, list) else []
    parts = content or item.summary or []
    return "\n".join([part.text for part in parts if part.text])


# ---- errors


def _wrong(message: str, param: str) -> RequestError:
    return RequestError(message, param=param, code="invalid_value")


def _unsupported(kind: str, where: str, item: InputItem) -> RequestError:
    if kind == "item_reference":
        message = f"Item with id '{item.id}' not found."
        return RequestError(message, param=f"{where}.id", code="item_not_found")
    what = f"Input items of type '{kind}' are not supported. Supported are: {', '.join(ITEM_TYPES)}."
    return RequestError(what, param=f"{where}.type", code="unsupported_value")
