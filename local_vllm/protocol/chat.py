"""The Chat Completions side as types: the messages that are sent to the engine, and the answers that it
gives. Token arrays of an answer stay raw bytes; an answer's fields that nobody reads are skipped without
being decoded.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

# ---- what is sent


class FunctionCall(Struct, frozen=True, gc=False):
    name: str
    arguments: str


class ToolCall(Struct, frozen=True, gc=False):
    id: str
    function: FunctionCall
    type: str = "function"


class ChatMessage(Struct, gc=False):
    """One message. `content` is text, a list of parts, or None for an assistant that only calls tools.

    vLLM 0.26 to 0.33 read an assistant's reasoning from `reasoning` and hand it to the chat template both as
    `reasoning` and as `reasoning_content`.
    """

    role: str
    content: str | list[dict[str, Any]] | None = None
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET


# ---- what comes back


class FunctionDelta(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Struct, gc=False):
    """A tool call, or a piece of one: `index` says of which. A whole answer numbers its calls by position."""

    function: FunctionDelta | None = None
    id: str | None = None
    index: int | None = None


class Delta(Struct, gc=False):
    """What a chunk of a stream adds; the message of a whole answer is one big delta."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class PromptTokensDetails(Struct, gc=False):
    cached_tokens: int | None = None
    created_cache_tokens: int | None = None


class CompletionTokensDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class Usage(Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class Choice(Struct, gc=False):
    message: Delta
    finish_reason: str | None = None


class ChatAnswer(Struct, gc=False):
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class TokenLogprob(Struct, gc=False):
    logprob: Raw


class Logprobs(Struct, gc=False):
    content: list[TokenLogprob] | None = None


class ChoiceWithTokens(Choice, gc=False):
    token_ids: Raw | UnsetType = UNSET
    logprobs: Logprobs | None = None


class ChunkChoice(Struct, gc=False):
    delta: Delta
    finish_reason: str | None = None


class ChatChunk(Struct, gc=False):
    """One event of a stream. The last has the usage and no choices; a failure has an `error` alone.

    `prompt_text` is what the chat template made, in the first one only.
    """

    model: str = ""
    choices: list[ChunkChoice] = []
    usage: Usage | None = None
    prompt_text: str | None = None
    error: Raw | UnsetType = UNSET


class ListedLogprobs(Struct, gc=False):
    content: Raw | UnsetType = UNSET


class ChunkChoiceWithTokens(ChunkChoice, gc=False):
    token_ids: Raw | UnsetType = UNSET
    logprobs: ListedLogprobs | None = None


class ChatChunkWithTokens(ChatChunk, gc=False):
    """An event of a stream of which token ids or log probabilities are wanted: those of its own tokens.

    `prompt_token_ids` are in the first one only.
    """

    choices: list[ChunkChoiceWithTokens] = []
    prompt_token_ids: Raw | UnsetType = UNSET


class ChatAnswerWithTokens(Struct, gc=False):
    """A whole answer of which the token ids are wanted."""

    model: str
    choices: list[ChoiceWithTokens]
    usage: Usage | None = None
    prompt_token_ids: Raw | UnsetType = UNSET
