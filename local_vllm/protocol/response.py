"""The response object: an engine's answer, and what the request said, in OpenAI's schema."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from local_vllm.protocol import chat
from local_vllm.protocol.calls import Asked
from local_vllm.protocol.items import OutputItem
from local_vllm.protocol.overflow import Overflow
from local_vllm.protocol.request import Reasoning, TextConfig

_encode = msgspec.json.Encoder().encode
_DEFAULT_TEXT = Raw(b'{"format":{"type":"text"},"verbosity":"medium"}')
_DEFAULT_REASONING = Raw(b'{"effort":null,"summary":null}')

# finish_reason -> why a response is incomplete; any other ending is a whole one
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ABORTED = "abort"


class InputTokensDetails(Struct, gc=False):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, gc=False):
    reasoning_tokens: int = 0


class Usage(Struct, gc=False):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Ending(Struct, frozen=True):
    """How an answer ended: `status` and its reason, in OpenAI's words."""

    status: str
    reason: str | None = None
    error: dict[str, str] | None = None


COMPLETED = Ending("completed")


def ending(finish_reason: str | None) -> Ending:
    """vLLM: stop, tool_calls and repetition are whole answers; length and abort are not."""
    if finish_reason == _ABORTED:
        return Ending(
            "failed", error={"code": "server_error", "message": "The engine gave up on this request."}
        )
    reason = _INCOMPLETE.get(finish_reason or "")
    return Ending("incomplete", reason) if reason else COMPLETED


class ResponseObject(Struct, gc=False):
    id: str
    object: str
    created_at: int
    completed_at: int | None
    status: str
    background: bool
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    reasoning: Any
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: Any
    text: Any
    tool_choice: Any
    tools: Any
    top_logprobs: int
    top_p: Any
    truncation: str
    usage: Usage | None
    user: str | None
    metadata: dict[str, str]


def response_object(
    asked: Asked,
    *,
    model: str,
    output: list[OutputItem],
    end: Ending,
    usage: Usage | None,
    completed_at: int,
    notes: dict[str, str] | None = None,
) -> ResponseObject:
    """`notes` are added to the request's metadata; they say what was done to the request."""
    request = asked.request
    return ResponseObject(
        id=asked.response_id,
        object="response",
        created_at=asked.created_at,
        completed_at=completed_at if end.status == "completed" else None,
        status=end.status,
        background=False,
        error=end.error,
        incomplete_details={"reason": end.reason} if end.reason else None,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        model=model,
        output=output,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        prompt_cache_retention=request.prompt_cache_retention,
        reasoning=_reasoning(request.reasoning),
        safety_identifier=request.safety_identifier,
        service_tier=_service_tier(request.service_tier),
        store=asked.store,
        temperature=asked.temperature,
        text=_text(request.text),
        tool_choice=_tool_choice(request.tool_choice),
        tools=asked.toolbox.echo,
        top_logprobs=request.top_logprobs or 0,
        top_p=asked.top_p,
        truncation=request.truncation or "disabled",
        usage=usage,
        user=request.user,
        metadata=_metadata(asked, notes),
    )


def _reasoning(given: Reasoning | None) -> Any:
    if given is None:
        return _DEFAULT_REASONING
    return {"effort": given.effort, "summary": given.summary or given.generate_summary}


def _text(given: TextConfig | None) -> Any:
    if given is None:
        return _DEFAULT_TEXT
    verbosity = given.verbosity or "medium"
    if given.format is None or given.format.type != "json_schema":
        kind = given.format.type if given.format else "text"
        return {"format": {"type": kind}, "verbosity": verbosity}
    return {"format": given.format, "verbosity": verbosity}


def _tool_choice(given: Any) -> Any:
    return given if type(given) is Raw and bytes(given) != b"null" else "auto"


def _service_tier(given: str | None) -> str:
    """`auto` is answered with what it came to; there is one tier here."""
    return "default" if given is None or given == "auto" else given


def _metadata(asked: Asked, notes: dict[str, str] | None) -> dict[str, str]:
    metadata = _echo(asked.request.metadata or {})
    if asked.toolbox.dropped:
        metadata = metadata | {"hosted_tools_dropped": ",".join(asked.toolbox.dropped)}
    return metadata | notes if notes else metadata


def _echo(metadata: dict[str, Any]) -> dict[str, str]:
    """What the request said, save audio that is in it; a list of paths as the JSON string it stands for."""
    if "audio_data" not in metadata and "audio_paths" not in metadata:
        return metadata
    return {
        name: value if isinstance(value, str) else _encode(value).decode()
        for name, value in metadata.items()
        if name != "audio_data"
    }


def usage_of(usage: chat.Usage | None) -> Usage | None:
    """Chat's usage in the names of the Responses API; counts that the engine does not tell are 0."""
    if usage is None:
        return None
    before, after = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        usage.prompt_tokens,
        InputTokensDetails(
            (before.cached_tokens if before else None) or 0,
            (before.created_cache_tokens if before else None) or 0,
        ),
        usage.completion_tokens or 0,
        OutputTokensDetails((after.reasoning_tokens if after else None) or 0),
        usage.total_tokens,
    )


def overflow_notes(overflow: Overflow) -> dict[str, str]:
    """What an incomplete response says about the prompt that did not fit."""
    return {
        f"context_overflow_{overflow.unit}_asked": str(overflow.asked),
        f"context_overflow_{overflow.unit}_limit": str(overflow.limit),
    }
