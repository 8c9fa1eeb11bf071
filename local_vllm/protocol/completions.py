"""Base models: a chat request -> one for /v1/completions, and the answer back in chat's shape. Applying a chat
template is left to who has the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from local_vllm.errors import RequestError, UpstreamError
from local_vllm.protocol.events import ResponseEvents
from local_vllm.protocol.precedence import Fields
from local_vllm.protocol.request import decode_part

# (messages as plain JSON values, variables of the template) -> prompt
Render = Callable[[list[dict[str, Any]], Mapping[str, Any]], str]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode
_decode_messages = msgspec.json.Decoder(list[dict[str, Any]]).decode
_FOR_THE_TEMPLATE = ("chat_template_kwargs",)
# What only chat has; tools are refused, the rest is about the chat template.
_LEFT_OUT = frozenset(
    "chat_template chat_template_kwargs add_generation_prompt continue_final_message documents tool_choice "
    "parallel_tool_calls reasoning_effort include_reasoning return_prompt_text".split()
)


class _Logprobs(Struct, gc=False):
    tokens: list[str] = []
    token_logprobs: list[Raw] = []
    top_logprobs: list[dict[str, Raw] | None] | None = None


class _Choice(Struct, gc=False):
    text: str = ""
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: Raw | UnsetType = UNSET
    prompt_token_ids: Raw | UnsetType = UNSET


class _Answer(Struct, gc=False):
    model: str = ""
    choices: list[_Choice] = []
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    id: str = ""
    created: int = 0


_decode_answer = msgspec.json.Decoder(_Answer).decode


def completion_body(chat: Mapping[str, Any], render: Render | None) -> bytes:
    """The request for /v1/completions. Without `render` the prompt is the messages' texts, one after another.

    Raises RequestError for tools, and for content that is no text.
    """
    if chat.get("tools"):
        raise RequestError(
            "This server asks a base model through /v1/completions: it has no tools.",
            param="tools",
            code="unsupported_value",
        )
    messages = decode_part(_decode_messages, _encode(chat["messages"]), "input")
    fields: Fields = {name: value for name, value in chat.items() if name not in _LEFT_OUT}
    fields.pop("messages")
    if render is None:
        fields["prompt"] = "".join([_text(message) for message in messages])
    else:
        fields["prompt"] = render(messages, _variables(chat))
        fields["add_special_tokens"] = False
    # Completions end after 16 tokens unless they are told that there is no such limit.
    fields["max_tokens"] = fields.pop("max_completion_tokens", None)
    if fields.pop("logprobs", False):
        fields["logprobs"] = fields.pop("top_logprobs", 0)
    return _encode(fields)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        return "".join([part["text"] for part in content])
    if content is None or isinstance(content, str):
        return content or ""
    raise RequestError(
        "This server asks a base model through /v1/completions: send text only.",
        param="input",
        code="unsupported_value",
    )


def _variables(chat: Mapping[str, Any]) -> Mapping[str, Any]:
    given = chat.get("chat_template_kwargs")
    return _decode(_encode(given)) if given is not None else {}


# ---- answers


def as_chat_answer(answer: bytes) -> bytes:
    """A whole completion as a chat completion. Raises UpstreamError when it is none."""
    try:
        return _encode(_as_chat(_decode_answer(answer), "message", "chat.completion"))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        raise UpstreamError(f"The engine's answer is no completion: {problem}", code="bad_gateway") from problem


class CompletionEvents(ResponseEvents):
    """Events of a stream of completions."""

    def add(self, payload: bytes) -> bytes:
        return super().add(_as_chat_chunk(payload))


def _as_chat_chunk(payload: bytes) -> bytes:
    """A piece of a stream; one that is something else stays what it is."""
    try:
        chunk = _decode_answer(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return payload
    if chunk.error is not UNSET:
        return payload
    return _encode(_as_chat(chunk, "delta", "chat.completion.chunk"))


def _as_chat(answer: _Answer, message: str, kind: str) -> dict[str, Any]:
    chat: dict[str, Any] = {
        "id": answer.id,
        "object": kind,
        "created": answer.created,
        "model": answer.model,
        "choices": [_choice(choice, message) for choice in answer.choices],
    }
    if answer.usage is not UNSET:
        chat["usage"] = answer.usage
    if answer.choices and answer.choices[0].prompt_token_ids is not UNSET:
        chat["prompt_token_ids"] = answer.choices[0].prompt_token_ids
    return chat


def _choice(choice: _Choice, message: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "index": 0,
        message: {"role": "assistant", "content": choice.text},
        "finish_reason": choice.finish_reason,
    }
    if choice.token_ids is not UNSET:
        made["token_ids"] = choice.token_ids
    if choice.logprobs is not None:
        made["logprobs"] = {"content": _entries(choice.logprobs)}
    return made


def _entries(logprobs: _Logprobs) -> list[dict[str, Any]]:
    tops = logprobs.top_logprobs or [None] * len(logprobs.tokens)
    return [
        _entry(token, value) | {"top_logprobs": [_entry(name, each) for name, each in (top or {}).items()]}
        for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, tops, strict=True)
    ]


def _entry(token: str, logprob: Raw) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}
