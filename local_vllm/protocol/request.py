"""A Responses request as types: one decode checks every known field for type, range and enumeration. What the
items mean together (calls and their outputs, roles and parts) is left to `messages.py` and `tools.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from local_vllm.protocol.errors import locate, malformed, misspelled
from local_vllm.protocol.vllm_fields import PASSED_THROUGH

T = TypeVar("T")

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Summary = Literal["auto", "concise", "detailed"]
Status = Literal["in_progress", "completed", "incomplete"]
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class MediaUrl(Struct, gc=False):
    """A URL as Chat Completions has it."""

    url: str


class Part(Struct, gc=False):
    """Any content part of an input item; which fields it needs follows from `type`."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: Literal["low", "high", "auto", "original"] | None = None
    file_id: str | None = None
    input_audio: Raw | UnsetType = UNSET
    audio_url: str | MediaUrl | None = None
    video_url: str | MediaUrl | None = None


class InputItem(Struct, gc=False):
    """Any input item; which fields it needs follows from `type`. Fields not named here (token ids of an
    earlier turn, annotations, ...) are skipped without being decoded.
    """

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None
    status: Status | None = None
    id: str | None = None


class Reasoning(Struct, gc=False):
    effort: Effort | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None


class TextFormat(Struct, gc=False):
    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")] | None = None
    schema: Raw | UnsetType = UNSET
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct, gc=False):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class _StrictReasoning(Reasoning, forbid_unknown_fields=True):
    """The same, closed."""


class _StrictTextFormat(TextFormat, forbid_unknown_fields=True):
    """The same, closed."""


class _StrictTextConfig(TextConfig, forbid_unknown_fields=True):
    format: _StrictTextFormat | None = None


class OpenAIFields(Struct, kw_only=True, gc=False):
    """The fields that OpenAI's schema has. `null` is the same as absent."""

    model: str | None = None
    input: str | list[InputItem] | None = None
    instructions: str | None = None
    tools: Raw | UnsetType = UNSET
    tool_choice: Raw | UnsetType = UNSET
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**63 - 1)] | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    metadata: dict[Annotated[str, Meta(max_length=64)], str | list[str]] | None = None
    include: list[Includable] | None = None
    store: bool | None = None
    user: str | None = None
    truncation: Literal["auto", "disabled"] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET
    n: Literal[1] | None = None
    stream_options: Raw | UnsetType = UNSET
    access_programs: Raw | UnsetType = UNSET
    background_options: Raw | UnsetType = UNSET
    context_management: Raw | UnsetType = UNSET
    image: Raw | UnsetType = UNSET
    moderation: Raw | UnsetType = UNSET
    prompt_cache_options: Raw | UnsetType = UNSET


_VLLM_FIELDS: list[tuple[str, Any, Any]] = [(name, Raw | UnsetType, UNSET) for name in PASSED_THROUGH]

# The same twice: refusing unknown names costs nothing when there are none, and only a request that has some
# is decoded again to find out whether they are misspellings.
ResponsesRequest: Any = msgspec.defstruct(
    "ResponsesRequest",
    [
        *_VLLM_FIELDS,
        ("reasoning", _StrictReasoning | None, None),
        ("text", _StrictTextConfig | None, None),
    ],
    bases=(OpenAIFields,),
    kw_only=True,
    gc=False,
    forbid_unknown_fields=True,
)
_LenientRequest: Any = msgspec.defstruct(
    "_LenientRequest", _VLLM_FIELDS, bases=(OpenAIFields,), kw_only=True, gc=False
)

_KNOWN = frozenset(ResponsesRequest.__struct_fields__)
_KNOWN_INSIDE = {
    "reasoning": frozenset(Reasoning.__struct_fields__),
    "text": frozenset(TextConfig.__struct_fields__),
}
_decode: Callable[[bytes], OpenAIFields] = msgspec.json.Decoder(ResponsesRequest).decode
_decode_leniently: Callable[[bytes], OpenAIFields] = msgspec.json.Decoder(_LenientRequest).decode
_decode_names = msgspec.json.Decoder(dict[str, Raw]).decode


def read_request(body: bytes) -> OpenAIFields:
    """Decode and check a Responses request. Raises RequestError that names the field at fault."""
    check_is_text(body)
    try:
        return _decode(body)
    except msgspec.ValidationError as problem:
        if not str(problem).startswith("Object contains unknown field"):
            raise locate(problem) from problem
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        raise malformed(problem) from problem
    return _read_with_unknown_names(body)


def check_is_text(body: bytes) -> None:
    """Parts of a body are copied unread, so it has to be UTF-8 as a whole. Raises RequestError."""
    if body.isascii():
        return
    try:
        str(body, "utf-8")
    except UnicodeDecodeError as problem:
        raise malformed(problem) from problem


def _read_with_unknown_names(body: bytes) -> OpenAIFields:
    check_names(decode_part(_decode_names, body))
    return decode_part(_decode_leniently, body)


def check_names(fields: Mapping[str, Any]) -> None:
    """Raises RequestError when a field of a request, given as raw JSON, nearly spells a known one."""
    _check_spelling(fields, _KNOWN, "")
    for name, known in _KNOWN_INSIDE.items():
        if bytes(memoryview(fields.get(name, b""))[:1]) == b"{":
            _check_spelling(decode_part(_decode_names, fields[name], name), known, f"{name}.")


def _check_spelling(given: Mapping[str, Any], known: frozenset[str], prefix: str) -> None:
    for name in given.keys() - known:
        misspelled(name, known, prefix)


def decode_part(decode: Callable[[Any], T], raw: bytes | Raw, param: str = "") -> T:
    """Decode one field's bytes; errors name the field as a path that starts with `param`."""
    try:
        return decode(raw)
    except msgspec.ValidationError as problem:
        raise locate(problem, param) from problem
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        raise malformed(problem) from problem
