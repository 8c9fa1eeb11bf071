"""What an engine says to a request for /v1/completions, whole or in a stream, in the shape of chat's answers."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from local_vllm.errors import UpstreamError
from local_vllm.protocol.events import ResponseEvents


class _Logprobs(Struct, gc=False):
    tokens: list[str] = []
    token_logprobs: list[Raw] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(Struct, gc=False):
    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    stop_reason: Raw | UnsetType = UNSET
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


class _Asked(Struct, gc=False):
    logprobs: Any = None


_encode = msgspec.json.Encoder().encode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_asked = msgspec.json.Decoder(_Asked).decode


def as_chat_answer(answer: bytes, body: bytes) -> bytes:
    """A whole completion as a chat completion; `body` is what was asked. Raises UpstreamError when it is none."""
    try:
        chat = _as_chat(_decode_answer(answer), "chat.completion", _most(body))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        raise UpstreamError(f"The engine's answer is no completion: {problem}", code="bad_gateway") from problem
    for choice in chat["choices"]:
        choice["message"] = {"role": "assistant", **choice["message"]}
    return _encode(chat)


class ChatChunks:
    """The events of a stream of completions, one by one, as those of chat. `body` is what was asked."""

    def __init__(self, body: bytes) -> None:
        self._most = _most(body)
        self._begun: set[int] = set()

    def data(self, payload: bytes) -> bytes:
        """The data of chat's event. What is no piece of a completion, an error say, stays what it is."""
        try:
            chunk = _decode_answer(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return payload
        if chunk.error is not UNSET:
            return payload
        chat = _as_chat(chunk, "chat.completion.chunk", self._most)
        for choice in chat["choices"]:
            self._begin(choice)
        return _encode(chat)

    def _begin(self, choice: dict[str, Any]) -> None:
        """The first piece of each answer says whose it is."""
        if choice["index"] not in self._begun:
            self._begun.add(choice["index"])
            choice["delta"] = {"role": "assistant", **choice["delta"]}


class CompletionEvents(ResponseEvents):
    """Events of a stream of completions."""

    def __init__(self, *args: Any, body: bytes, **options: Any) -> None:
        super().__init__(*args, **options)
        self._chunks = ChatChunks(body)

    def add(self, payload: bytes) -> bytes:
        return super().add(self._chunks.data(payload))


def _most(body: bytes) -> int:
    """How many alternatives were asked for: none with what is no number, if the engine takes that at all.

    vLLM adds the token itself to them here, and to chat's it does not.
    """
    most = _decode_asked(body).logprobs
    return most if type(most) is int else 0


def _as_chat(answer: _Answer, kind: str, most: int) -> dict[str, Any]:
    says = "message" if kind == "chat.completion" else "delta"
    chat: dict[str, Any] = {
        "id": answer.id,
        "object": kind,
        "created": answer.created,
        "model": answer.model,
        "choices": [_choice(choice, says, most) for choice in answer.choices],
    }
    if answer.usage is not UNSET:
        chat["usage"] = answer.usage
    if answer.choices and _is_there(answer.choices[0].prompt_token_ids):
        chat["prompt_token_ids"] = answer.choices[0].prompt_token_ids
    return chat


def _choice(choice: _Choice, says: str, most: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "index": choice.index,
        says: {"content": choice.text},
        "finish_reason": choice.finish_reason,
    }
    for name in ("stop_reason", "token_ids"):
        if _is_there(value := getattr(choice, name)):
            made[name] = value
    if choice.logprobs is not None:
        made["logprobs"] = {"content": _entries(choice.logprobs, most)}
    return made


def _is_there(value: Raw | UnsetType) -> bool:
    return value is not UNSET and bytes(memoryview(value)[:4]) != b"null"


def _entries(logprobs: _Logprobs, most: int) -> list[dict[str, Any]]:
    tops = logprobs.top_logprobs or [None] * len(logprobs.tokens)
    return [
        _entry(token, value) | {"top_logprobs": _likeliest(top or {}, most)}
        for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, tops, strict=True)
    ]


def _likeliest(top: dict[str, float], most: int) -> list[dict[str, Any]]:
    ordered = sorted(top.items(), key=lambda each: -each[1])
    return [_entry(token, value) for token, value in ordered[:most]]


def _entry(token: str, logprob: Raw | float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}
