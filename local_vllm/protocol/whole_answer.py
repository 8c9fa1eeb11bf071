"""An engine's whole answer: read as far as it is needed, made into items, its tokens put where a client finds them."""

from __future__ import annotations

from typing import Any

import msgspec

from local_vllm.errors import UpstreamError
from local_vllm.protocol import tokens
from local_vllm.protocol.calls import Asked, ChatCall
from local_vllm.protocol.chat import ChatAnswer, ChatAnswerWithTokens, Delta
from local_vllm.protocol.fold import Fold
from local_vllm.protocol.logprobs import TokenTexts
from local_vllm.protocol.reasoning import ThinkSplitter
from local_vllm.protocol.tokens import NoTokens, Tokens

_decode_answer = msgspec.json.Decoder(ChatAnswer).decode
_decode_answer_with_tokens = msgspec.json.Decoder(ChatAnswerWithTokens).decode


def folded(
    asked: Asked,
    message: Delta,
    splitter: ThinkSplitter | None,
    texts: TokenTexts | None,
    *,
    cut_off: bool,
) -> list[Any]:
    """The items of a whole answer."""
    key = asked.response_id.removeprefix("resp_")
    fold = Fold(key, splitter=splitter, callees=asked.toolbox.callees, tokens=texts)
    fold.add(message)
    fold.finish(cut_off=cut_off)
    return fold.items


def attach_tokens(
    output: list[Any], decoded: Any, answer: bytes, tokenized: bytes | None
) -> Tokens | NoTokens:
    """Give the last item the tokens of its turn, if they are there."""
    found = tokens.read_tokens(decoded, answer, tokenized)
    if isinstance(found, Tokens):
        output[-1].carry(found)
    return found


def read_answer(call: ChatCall, answer: bytes) -> Any:
    decode = _decode_answer_with_tokens if call.wants_token_ids else _decode_answer
    try:
        decoded = decode(answer)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        raise UpstreamError(
            f"The engine's answer is no chat completion: {problem}", code="bad_gateway"
        ) from problem
    if not decoded.choices:
        raise UpstreamError("The engine's answer holds no choices.", code="bad_gateway")
    return decoded
