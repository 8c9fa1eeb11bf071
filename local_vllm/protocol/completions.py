"""Base models: a chat request -> one for /v1/completions. What such an engine answers is `completion_answers.py`'s;
applying a chat template is left to who has the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from local_vllm.errors import RequestError
from local_vllm.protocol.errors import missing
from local_vllm.protocol.precedence import Fields
from local_vllm.protocol.request import decode_part

# (messages as plain JSON values, variables of the template) -> prompt
Render = Callable[[list[dict[str, Any]], Mapping[str, Any]], str]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode
# What is about the chat template, apart from `chat_template_kwargs`, which are decided over these.
_FOR_THE_TEMPLATE = ("reasoning_effort", "documents", "add_generation_prompt", "continue_final_message")
# What only chat has; tools are refused.
_LEFT_OUT = frozenset(
    {
        *_FOR_THE_TEMPLATE,
        *"messages chat_template chat_template_kwargs tools tool_choice parallel_tool_calls".split(),
        *"include_reasoning return_prompt_text logprobs top_logprobs max_completion_tokens".split(),
    }
)
# vLLM ends completions after 16 tokens where no limit is given, null included. One that is too high it refuses,
# and tells the highest: then it is asked again.
NO_LIMIT = 2**31 - 1


class _Part(Struct, gc=False):
    type: str
    text: str = ""


class _Content(Struct, gc=False):
    content: str | list[_Part] | None = None


class _Prompt(Struct, gc=False):
    prompt: str | list[int] = ""


_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_decode_messages = msgspec.json.Decoder(list[dict[str, Any]]).decode
_decode_contents = msgspec.json.Decoder(list[_Content]).decode
_decode_prompt = msgspec.json.Decoder(_Prompt).decode


def completion_body(chat: Mapping[str, Any], render: Render | None, *, param: str = "input") -> bytes:
    """The request for /v1/completions. Without `render` the prompt is the messages' texts, one after another.

    `param` is what the client calls the messages. Raises RequestError for tools, for content that is no text, and
    for a chat template of the request's own.
    """
    if _value(chat, "tools"):
        raise RequestError(
            "This server asks a base model through /v1/completions: it has no tools.",
            param="tools",
            code="unsupported_value",
        )
    fields: Fields = {name: value for name, value in chat.items() if name not in _LEFT_OUT}
    fields["prompt"] = _prompt(chat, render, param)
    if render is not None:
        fields.setdefault("add_special_tokens", False)
    fields["max_tokens"] = chat.get("max_completion_tokens", NO_LIMIT)
    if _value(chat, "logprobs"):
        fields["logprobs"] = chat.get("top_logprobs", 0)
    return _encode(fields)


def prompt_of(body: bytes) -> str:
    """The prompt in a request that `completion_body` made."""
    found = _decode_prompt(body).prompt
    return found if isinstance(found, str) else ""


def _value(chat: Mapping[str, Any], name: str) -> Any:
    value = chat.get(name)
    return decode_part(_decode, value, name) if isinstance(value, Raw) else value


def _prompt(chat: Mapping[str, Any], render: Render | None, param: str) -> str:
    given = chat.get("messages")
    if given is None:
        raise missing(param)
    encoded = _encode(given)
    texts = [_texts(each, param) for each in decode_part(_decode_contents, encoded, param)]
    if render is None:
        return "".join(["".join(text) for text in texts])
    if _value(chat, "chat_template") is not None:
        raise RequestError(
            "This server makes prompts with its tokenizer's own chat template: leave 'chat_template' out.",
            param="chat_template",
            code="unsupported_parameter",
        )
    messages = zip(decode_part(_decode_messages, encoded, param), texts, strict=True)
    return render([_for_the_template(message, text) for message, text in messages], _variables(chat))


def _texts(message: _Content, param: str) -> list[str]:
    """The parts of a message's text. Raises RequestError for parts that are none."""
    if not isinstance(message.content, list):
        return [message.content or ""]
    if any(part.type != "text" for part in message.content):
        raise RequestError(
            "This server asks a base model through /v1/completions: send text only.",
            param=param,
            code="unsupported_value",
        )
    return [part.text for part in message.content]


def _for_the_template(message: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """A message as vLLM gives it to a template: parts in lines, reasoning under both of its names, arguments read."""
    made = message | {"content": "\n".join(texts)}
    if message.get("reasoning"):
        made["reasoning_content"] = message["reasoning"]
    if isinstance(calls := message.get("tool_calls"), list):
        made["tool_calls"] = [_with_read_arguments(call) for call in calls]
    return made


def _with_read_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = _decode(function["arguments"] or "{}")
    except (msgspec.DecodeError, RecursionError):
        return call
    return call | {"function": function | {"arguments": arguments}}


def _variables(chat: Mapping[str, Any]) -> dict[str, Any]:
    """What the request says to the template, `chat_template_kwargs` last."""
    said = {name: _value(chat, name) for name in _FOR_THE_TEMPLATE if chat.get(name) is not None}
    given = chat.get("chat_template_kwargs")
    return said | (decode_part(_decode_object, _encode(given), "chat_template_kwargs") if given is not None else {})
