"""Token ids and log probabilities of an answer: counted and copied as the engine wrote them."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from local_vllm.protocol.chat import ChatAnswerWithTokens, ChatChunkWithTokens, TokenLogprob
from local_vllm.protocol.vllm_fields import TOKENIZE

_encode = msgspec.json.Encoder().encode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_TOKEN_ID = "token_id:"


class Tokens(Struct, frozen=True):
    """A turn's tokens as JSON arrays: ids as integers, one log probability for each of the `generated` tokens."""

    prompt: Raw
    generation: Raw
    log_probs: Raw
    generated: int


class NoTokens(Struct, frozen=True):
    """Why there are none. `prompt_only`: the engine's /tokenize can fill the gap."""

    reason: str
    prompt_only: bool = False


class _Tokenized(Struct, gc=False):
    tokens: Raw


class _NamedToken(Struct, gc=False):
    token: str


class _NamedTokens(Struct, gc=False):
    content: list[_NamedToken]


class _ChoiceWithNames(Struct, gc=False):
    logprobs: _NamedTokens


class _AnswerWithNames(Struct, gc=False):
    choices: list[_ChoiceWithNames]


_decode_names = msgspec.json.Decoder(_AnswerWithNames).decode
_decode_listed = msgspec.json.Decoder(list[TokenLogprob]).decode
_decode_named = msgspec.json.Decoder(list[_NamedToken]).decode
_decode_tokenized = msgspec.json.Decoder(_Tokenized).decode


def read_tokens(
    answer: ChatAnswerWithTokens, body: bytes, tokenized: bytes | None = None
) -> Tokens | NoTokens:
    """The tokens of an answer that reads `body`; `tokenized` is what /tokenize said about its prompt."""
    choice = answer.choices[0]
    listed = choice.logprobs.content if choice.logprobs else None
    if listed is None:
        return NoTokens("the engine returned no log probabilities")
    generation = _generated(choice.token_ids, body)
    return _checked(answer.prompt_token_ids, tokenized, generation, _log_probs(listed), len(listed))


def _checked(
    inline: Raw | UnsetType, tokenized: bytes | None, generation: Raw | None, log_probs: bytes, listed: int
) -> Tokens | NoTokens:
    if generation is None:
        return NoTokens("the engine returned no token ids for what it generated")
    generated = count(generation)
    if generated != listed:
        return NoTokens(f"the engine returned {generated} token ids but {listed} log probabilities")
    # Of JSON's numbers and null, the last alone has this letter; one letter is found ten times as fast as a word.
    if b"n" in log_probs:
        return NoTokens("the engine returned a log probability that is no number")
    prompt = _prompt(inline, tokenized)
    if prompt is None:
        return NoTokens("the engine returned no token ids for the prompt", prompt_only=True)
    return Tokens(prompt, generation, Raw(log_probs), generated)


class StreamedTokens:
    """The same from a stream: collects what each of its events says of its own tokens."""

    def __init__(self) -> None:
        self._prompt: Raw | UnsetType = UNSET
        self._ids = bytearray()
        self._log_probs = bytearray()
        self._listed = 0

    def add(self, chunk: ChatChunkWithTokens) -> None:
        if chunk.prompt_token_ids is not UNSET:
            self._prompt = Raw(bytes(chunk.prompt_token_ids))
        for choice in chunk.choices:
            if (ids := _array(choice.token_ids)) is not None:
                _join(self._ids, bytes(ids))
            if choice.logprobs and (listed := _array(choice.logprobs.content)) is not None:
                self._add_listed(listed, named=_array(choice.token_ids) is None)

    def _add_listed(self, array: Raw, *, named: bool) -> None:
        listed = _decode_listed(array)
        self._listed += len(listed)
        _join(self._log_probs, _log_probs(listed))
        if named and (ids := _ids_in_names(_decode_named(array))) is not None:
            _join(self._ids, bytes(ids))

    def read(self, tokenized: bytes | None = None) -> Tokens | NoTokens:
        """All of them, when the stream is over."""
        if not self._listed:
            return NoTokens("the engine returned no log probabilities")
        generation = Raw(b"[%b]" % bytes(self._ids)) if self._ids else None
        return _checked(self._prompt, tokenized, generation, b"[%b]" % bytes(self._log_probs), self._listed)


def _join(arrays: bytearray, array: bytes) -> None:
    """Add a JSON array's members to those of others, without the brackets."""
    if members := array.strip()[1:-1]:
        arrays += b"," + members if arrays else members


def count(array: Raw) -> int:
    """How many numbers a JSON array holds."""
    text = bytes(array)
    commas = text.count(b",")
    return commas + 1 if commas or text.strip(b"[] \n\t\r") else 0


def tokenize_body(chat_body: bytes) -> bytes:
    """The /tokenize request for the prompt of a chat request."""
    chat = _decode_object(chat_body)
    fields: dict[str, Any] = {name: chat[name] for name in TOKENIZE if name in chat}
    return _encode(fields | _template_variables(chat))


def _template_variables(chat: dict[str, Raw]) -> dict[str, Any]:
    """The chat endpoint makes these fields variables of the template; /tokenize knows variables only."""
    given = {name: chat[name] for name in ("reasoning_effort", "documents") if name in chat}
    if not given:
        return {}
    thinking = {}
    if "reasoning_effort" in given:
        thinking["enable_thinking"] = bytes(given["reasoning_effort"]) != b'"none"'
    kwargs = _decode_object(chat["chat_template_kwargs"]) if "chat_template_kwargs" in chat else {}
    return {"chat_template_kwargs": thinking | kwargs | given}


def _array(value: Raw | UnsetType) -> Raw | None:
    """The value if it is an array."""
    return value if value is not UNSET and bytes(memoryview(value)[:1]) == b"[" else None


def _prompt(inline: Raw | UnsetType, tokenized: bytes | None) -> Raw | None:
    if (array := _array(inline)) is not None or tokenized is None:
        return array
    try:
        return _array(_decode_tokenized(tokenized).tokens)
    except msgspec.DecodeError:
        return None


def _generated(inline: Raw | UnsetType, body: bytes) -> Raw | None:
    """The ids, or what `return_tokens_as_token_ids` put in the place of the tokens' text."""
    if (array := _array(inline)) is not None:
        return array
    try:
        return _ids_in_names(_decode_names(body).choices[0].logprobs.content)
    except msgspec.ValidationError:
        return None


def _ids_in_names(tokens: list[_NamedToken]) -> Raw | None:
    names = [each.token for each in tokens]
    if not names or not all(name.startswith(_TOKEN_ID) for name in names):
        return None
    return Raw(f"[{','.join([name[len(_TOKEN_ID) :] for name in names])}]".encode())


def _log_probs(listed: list[TokenLogprob]) -> bytes:
    return _encode([each.logprob for each in listed])
