"""A Responses request, checked, -> the chat request that the engine gets. Where a field may be set in several
places, `precedence.py` decides.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw

from local_vllm.errors import RequestError
from local_vllm.protocol.errors import missing
from local_vllm.protocol.json_schema import check_schema
from local_vllm.protocol.precedence import Fields, canonical
from local_vllm.protocol.request import OpenAIFields, TextFormat, decode_part
from local_vllm.protocol.supplied import audio_paths
from local_vllm.protocol.tools import Toolbox
from local_vllm.protocol.vllm_fields import PASSED_THROUGH

_METADATA_VALUE_CHARS = 512
_METADATA_PAIRS = 16
# Values of metadata that may be longer, because they are read here.
_LISTS = frozenset({"audio_paths"})
_LONG_METADATA = frozenset({"extra_body", "chat_template_kwargs", "audio_data", "audio_path"}) | _LISTS

# What needs state that is not kept here.
_REFUSED = {
    "conversation": "Conversations are not kept here: use 'previous_response_id', or send the whole of it in 'input'.",
    "prompt": "Stored prompts are not available here: send 'instructions' and 'input'.",
}

_LOGPROBS = "message.output_text.logprobs"
_decode_limit = msgspec.json.Decoder(Annotated[int, Meta(ge=1, le=2**63 - 1)] | None).decode
_LIMITS = {"max_tokens": _decode_limit, "max_completion_tokens": _decode_limit}

_vllm_fields = attrgetter(*PASSED_THROUGH)
_NONE_PASSED = (UNSET,) * len(PASSED_THROUGH)


def check(request: OpenAIFields, *, stores_responses: bool = True) -> None:
    """Refuse what is well-formed and cannot be done. Raises RequestError."""
    if request.previous_response_id is not None and not stores_responses:
        raise RequestError(
            "Responses are not stored here (response_store: none): send the whole conversation in 'input'.",
            param="previous_response_id",
            code="unsupported_parameter",
        )
    if request.background:
        raise RequestError(
            "Background responses are not supported.", param="background", code="unsupported_value"
        )
    if request.conversation is not UNSET or request.prompt is not UNSET:
        _refuse(request)
    if request.metadata:
        _check_metadata(request.metadata)
        audio_paths(request.metadata)


def _refuse(request: OpenAIFields) -> None:
    for name, reason in _REFUSED.items():
        value = getattr(request, name)
        if value is not None and value is not UNSET and not _is_null(value):
            raise RequestError(reason, param=name, code="unsupported_parameter")


def _is_null(value: Any) -> bool:
    return type(value) is Raw and bytes(value) == b"null"


def _check_metadata(metadata: dict[str, Any]) -> None:
    if len(metadata) > _METADATA_PAIRS:
        raise RequestError(
            f"Invalid 'metadata': at most {_METADATA_PAIRS} pairs, got {len(metadata)}.",
            param="metadata",
            code="invalid_value",
        )
    for name, value in metadata.items():
        if not isinstance(value, str) and name not in _LISTS:
            raise RequestError(
                f"Invalid 'metadata.{name}': expected a string.", param=f"metadata.{name}", code="invalid_type"
            )
        if len(value) > _METADATA_VALUE_CHARS and name not in _LONG_METADATA:
            raise RequestError(
                f"Invalid 'metadata.{name}': at most {_METADATA_VALUE_CHARS} characters, got {len(value)}.",
                param=f"metadata.{name}",
                code="invalid_value",
            )


def caller_fields(request: OpenAIFields, toolbox: Toolbox) -> Fields:
    """The chat fields that the caller set, save `model`, `messages` and `stream`."""
    fields = canonical(_passed_through(request))
    if request.temperature is not None:
        fields["temperature"] = request.temperature
    if request.top_p is not None:
        fields["top_p"] = request.top_p
    if request.max_output_tokens is not None:
        fields["max_completion_tokens"] = request.max_output_tokens
    if request.reasoning is not None and request.reasoning.effort is not None:
        fields["reasoning_effort"] = request.reasoning.effort
    if wants_logprobs(request):
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    if request.text is not None and request.text.format is not None:
        fields |= _response_format(request.text.format)
    if toolbox.tools:
        fields |= _tool_fields(request, toolbox)
    return fields


def wants_logprobs(request: OpenAIFields) -> bool:
    """Whether the answer's text is to come with log probabilities."""
    return bool(request.top_logprobs) or (request.include is not None and _LOGPROBS in request.include)


def _passed_through(request: OpenAIFields) -> Fields:
    values = _vllm_fields(request)
    if values == _NONE_PASSED:
        return {}
    given = {name: value for name, value in zip(PASSED_THROUGH, values, strict=True) if value is not UNSET}
    for name in given.keys() & _LIMITS.keys():
        decode_part(_LIMITS[name], given[name], name)
    return given


def _tool_fields(request: OpenAIFields, toolbox: Toolbox) -> Fields:
    fields: Fields = {"tools": toolbox.tools}
    if toolbox.choice is not None:
        fields["tool_choice"] = toolbox.choice
    if request.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    return fields


def _response_format(format: TextFormat) -> Fields:
    if format.type == "text":
        return {}
    if format.type == "json_object":
        return {"response_format": {"type": "json_object"}}
    if format.name is None:
        raise missing("text.format.name")
    if format.schema is UNSET or _is_null(format.schema):
        raise missing("text.format.schema")
    check_schema(format.schema, "text.format.schema", code="invalid_json_schema")
    schema = {"name": format.name, "schema": format.schema}
    for name in ("description", "strict"):
        if (value := getattr(format, name)) is not None:
            schema[name] = value
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
