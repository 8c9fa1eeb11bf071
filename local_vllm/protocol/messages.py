"""Input items -> chat messages. An assistant's text, reasoning and parallel calls that stand side by side
become one message, as the model wrote them. Checks what items mean together; their types were checked by
`request.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET

from local_vllm.errors import RequestError
from local_vllm.protocol.chat import ChatMessage, FunctionCall, ToolCall
from local_vllm.protocol.errors import one_of
from local_vllm.protocol.request import InputItem, Part

Content = str | list[dict[str, Any]]

_URL_SCHEMES = ("http://", "https://", "data:", "file://")
_INPUT_PARTS = ("input_text", "input_image", "input_audio")
_ASSISTANT_PARTS = ("output_text", "refusal")
_encode = msgspec.json.Encoder().encode


def to_messages(
    instructions: str | None, given: str | list[InputItem] | None, *, developer_role: str = "developer"
) -> list[ChatMessage]:
    """The chat messages of a request. Raises RequestError naming the item at fault."""
    if given is None:
        raise _missing_field("input")
    if isinstance(given, str):
        messages = [ChatMessage("user", given)]
    else:
        messages = _Conversation(developer_role).read(given)
    if instructions:
        messages.insert(0, ChatMessage("system", instructions))
    if not messages:
        raise RequestError("'input' must hold at least one item.", param="input", code="invalid_value")
    return messages


class _Conversation:
    """Reads items in order. `turn` is the assistant's message, while the items are its."""

    def __init__(self, developer_role: str) -> None:
        self.messages: list[ChatMessage] = []
        self.turn: ChatMessage | None = None
        self.answered: dict[str, bool] = {}  # call id -> whether its output was seen
        self.developer_role = developer_role

    def read(self, items: list[InputItem]) -> list[ChatMessage]:
        for position, item in enumerate(items):
            kind = item.type or ("message" if item.role else "item_reference")
            reader = _READERS.get(kind)
            if reader is None:
                raise _unsupported(kind, position)
            reader(self, item, position)
        self._check_all_answered()
        return self.messages

    # -- one method for each type of item

    def message(self, item: InputItem, position: int) -> None:
        if item.role is None:
            raise _missing("role", position)
        if item.content is None:
            raise _missing("content", position)
        if item.role == "assistant":
            self._say(_assistant_text(item.content, position))
            return
        role = self.developer_role if item.role == "developer" else item.role
        self._add(ChatMessage(role, _input_content(item.content, f"input[{position}].content")))

    def reasoning(self, item: InputItem, position: int) -> None:
        text = _reasoning_text(item)
        if not text:
            return
        turn = self._open_turn(
            new=self.turn is not None and bool(self.turn.content) and not self._has_calls()
        )
        turn.reasoning = text if turn.reasoning is UNSET else f"{turn.reasoning}\n{text}"

    def function_call(self, item: InputItem, position: int) -> None:
        arguments = item.arguments
        if arguments is None:
            raise _missing("arguments", position)
        self._call(item, arguments, position)

    def custom_tool_call(self, item: InputItem, position: int) -> None:
        if item.input is None:
            raise _missing("input", position)
        self._call(item, _encode({"input": item.input}).decode(), position)

    def call_output(self, item: InputItem, position: int) -> None:
        call_id = item.call_id
        if call_id is None:
            raise _missing("call_id", position)
        if item.output is None:
            raise _missing("output", position)
        self._answer(call_id, position)
        content = _input_content(item.output, f"input[{position}].output")
        self._add(ChatMessage("tool", content, tool_call_id=call_id))

    # -- what they share

    def _add(self, message: ChatMessage) -> None:
        self.messages.append(message)
        self.turn = None

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

    def _call(self, item: InputItem, arguments: str, position: int) -> None:
        if not item.call_id:
            raise _missing("call_id", position)
        if not item.name:
            raise _missing("name", position)
        if item.call_id in self.answered:
            raise RequestError(
                f"Duplicate call_id '{item.call_id}'.",
                param=f"input[{position}].call_id",
                code="invalid_value",
            )
        self.answered[item.call_id] = False
        turn = self._open_turn()
        call = ToolCall(item.call_id, FunctionCall(item.name, arguments))
        if turn.tool_calls is UNSET:
            turn.tool_calls = [call]
        else:
            turn.tool_calls.append(call)

    def _answer(self, call_id: str, position: int) -> None:
        param = f"input[{position}].call_id"
        answered = self.answered.get(call_id)
        if answered is None:
            raise RequestError(
                f"No tool call found for function call output with call_id '{call_id}'.",
                param=param,
                code="invalid_value",
            )
        if answered:
            raise RequestError(
                f"Duplicate output for the tool call with call_id '{call_id}'.",
                param=param,
                code="invalid_value",
            )
        self.answered[call_id] = True

    def _check_all_answered(self) -> None:
        for call_id, answered in self.answered.items():
            if not answered:
                raise RequestError(
                    f"No tool output found for function call '{call_id}'.",
                    param="input",
                    code="invalid_value",
                )


_READERS: dict[str, Callable[[_Conversation, InputItem, int], None]] = {
    "message": _Conversation.message,
    "reasoning": _Conversation.reasoning,
    "function_call": _Conversation.function_call,
    "function_call_output": _Conversation.call_output,
    "custom_tool_call": _Conversation.custom_tool_call,
    "custom_tool_call_output": _Conversation.call_output,
}


# ---- content


def _input_content(content: str | list[Part], path: str) -> Content:
    """Text alone stays one string; several parts stay parts, and the engine decides how its template joins
    them.
    """
    if isinstance(content, str):
        return content
    if len(content) == 1 and content[0].type == "input_text":
        return _text(content[0], path, 0)
    return [_chat_part(part, path, position) for position, part in enumerate(content)]


def _chat_part(part: Part, path: str, position: int) -> dict[str, Any]:
    match part.type:
        case "input_text":
            return {"type": "text", "text": _text(part, path, position)}
        case "input_image":
            return {"type": "image_url", "image_url": _image(part, f"{path}[{position}]")}
        case "input_audio" if part.input_audio is not UNSET:
            return {"type": "input_audio", "input_audio": part.input_audio}
        case "input_file":
            raise RequestError(
                "Files are not supported here: send text or images.", param=f"{path}[{position}].type"
            )
    raise one_of(part.type, _INPUT_PARTS, f"{path}[{position}].type")


def _text(part: Part, path: str, position: int) -> str:
    if part.text is None:
        raise _missing_field(f"{path}[{position}].text")
    return part.text


def _image(part: Part, path: str) -> dict[str, str]:
    if part.file_id is not None and part.image_url is None:
        raise RequestError("There is no file store here: send 'image_url'.", param=f"{path}.file_id")
    if part.image_url is None:
        raise _missing_field(f"{path}.image_url")
    if not part.image_url.startswith(_URL_SCHEMES):
        raise RequestError(
            f"Invalid '{path}.image_url': expected a URL or a data URL.",
            param=f"{path}.image_url",
            code="invalid_value",
        )
    image = {"url": part.image_url}
    if part.detail in ("low", "high"):
        image["detail"] = part.detail
    return image


def _assistant_text(content: str | list[Part], position: int) -> str:
    if isinstance(content, str):
        return content
    path = f"input[{position}].content"
    return "".join([_assistant_part(part, path, number) for number, part in enumerate(content)])


def _assistant_part(part: Part, path: str, position: int) -> str:
    if part.type not in _ASSISTANT_PARTS:
        raise one_of(part.type, _ASSISTANT_PARTS, f"{path}[{position}].type")
    text = part.text if part.type == "output_text" else part.refusal
    if text is None:
        raise _missing_field(f"{path}[{position}].{'text' if part.type == 'output_text' else 'refusal'}")
    return text


def _reasoning_text(item: InputItem) -> str:
    """The reasoning itself if the item has it, else its summary. Encrypted reasoning is left out."""
    content = item.content if isinstance(item.content, list) else []
    parts = content or item.summary or []
    return "\n".join([part.text for part in parts if part.text])


# ---- errors


def _missing(field: str, position: int) -> RequestError:
    return _missing_field(f"input[{position}].{field}")


def _missing_field(param: str) -> RequestError:
    return RequestError(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def _unsupported(kind: str, position: int) -> RequestError:
    if kind == "item_reference":
        what = (
            "Items cannot be referred to here, because responses are not stored: send the items themselves."
        )
    else:
        what = f"Input items of type '{kind}' are not supported. Supported are: {', '.join(_READERS)}."
    return RequestError(what, param=f"input[{position}].type", code="unsupported_value")
