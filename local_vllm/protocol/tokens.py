"""Token ids and log probabilities of an answer: counted and copied as the engine wrote them."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from local_vllm.protocol.chat import ChatAnswerWithTokens, TokenLogprob
from local_vllm.protocol.vllm_fields import TOKENIZE

_encode = msgspec.json.Encoder().encode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_TOKEN_ID = "token_id:"


class Tokens(Struct, frozen=True):
    """A turn's tokens as JSON arrays: ids as integers, one log probability for each generated token."""

    prompt: Raw
    generation: Raw
    log_probs: Raw


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
    if generation is None:
        return NoTokens("the engine returned no token ids for what it generated")
    if count(generation) != len(listed):
        return NoTokens(
            f"the engine returned {count(generation)} token ids but {len(listed)} log probabilities"
        )
    if b"null" in (log_probs := _log_probs(listed)):
        return NoTokens("the engine returned a log probability that is no number")
    prompt = _prompt(answer.prompt_token_ids, tokenized)
    if prompt is None:
        return NoTokens("the engine returned no token ids for the prompt", prompt_only=True)
    return Tokens(prompt, generation, Raw(log_probs))


def count(array: Raw) -> int:
    """How many numbers a JSON array holds."""
    text = bytes(array)
    return text.count(b",") + 1 if text.strip(b"[] \n\t\r") else 0


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
        names = [each.token for each in _decode_names(body).choices[0].logprobs.content]
    except msgspec.ValidationError:
        return None
    if not names or not all(name.startswith(_TOKEN_ID) for name in names):
        return None
    return Raw(f"[{','.join([name[len(_TOKEN_ID) :] for name in names])}]".encode())


def _log_probs(listed: list[TokenLogprob]) -> bytes:
    return b"[" + b",".join([each.logprob for each in listed]) + b"]"
