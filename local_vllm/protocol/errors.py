"""Errors as OpenAI's error object: of a request that cannot be read, and of an engine that answered with one.
What is wrong with a request's meaning is found elsewhere and raised as RequestError.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct

from local_vllm.errors import RequestError

_encode = msgspec.json.Encoder().encode

# HTTP status -> OpenAI's type and code, for statuses that an engine answers with
_BY_STATUS: dict[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "permission_denied"),
    404: ("invalid_request_error", "not_found"),
    408: ("server_error", "timeout"),
    413: ("invalid_request_error", "request_too_large"),
    422: ("invalid_request_error", None),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("server_error", "service_unavailable"),
    504: ("server_error", "timeout"),
}

# Chat's names of fields -> the names that the client of a Responses request used
_RESPONSES_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


class ErrorFields(Struct, frozen=True):
    """The fields of OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


def error_body(error: RequestError | ErrorFields | Exception) -> bytes:
    """OpenAI's error object as JSON. An exception that says nothing about itself is a `server_error`."""
    if isinstance(error, RequestError):
        error = ErrorFields(str(error), error.type, error.param, error.code)
    elif not isinstance(error, ErrorFields):
        error = ErrorFields(str(error), "server_error", None, getattr(error, "code", None) or "server_error")
    return _encode({"error": error})


# ---- what msgspec found wrong with a request

_MISSING = re.compile(r"Object missing required field `(.+)`")


def locate(problem: msgspec.ValidationError, prefix: str = "") -> RequestError:
    """A RequestError that names the field at fault as OpenAI does: `input[3].content[0].image_url`."""
    what, _, path = str(problem).partition(" - at `")
    param = (
        (prefix + path.removeprefix("key in ").removeprefix("$").removesuffix("`"))
        .lstrip(".")
        .replace("[...]", "")
    )
    if absent := _MISSING.fullmatch(what):
        param = f"{param}.{absent[1]}".lstrip(".")
        return missing(param)
    code = "invalid_type" if ", got `" in what else "invalid_value"
    where = f"Invalid value for '{param}'" if param else "Invalid request body"
    return RequestError(f"{where}: {what.replace('`', '')}.", param=param or None, code=code)


def malformed(problem: Exception) -> RequestError:
    """A RequestError for bytes that are no JSON, or JSON nested too deep."""
    what = "it is nested too deeply" if isinstance(problem, RecursionError) else str(problem)
    return RequestError(f"The request body could not be read as JSON: {what}.", code="invalid_json")


@lru_cache(maxsize=1024)
def _nearest(name: str, known: frozenset[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.83)), None)


def misspelled(name: str, known: frozenset[str], prefix: str = "") -> None:
    """Raise RequestError if an unknown field nearly spells a known one; others are none of our business.

    `prefix` is the path of the object that it is in.
    """
    if len(name) <= 64 and (nearest := _nearest(name, known)):
        raise RequestError(
            f"Unknown parameter: '{prefix}{name}'. Did you mean '{prefix}{nearest}'?",
            param=f"{prefix}{name}",
            code="unknown_parameter",
        )


def missing(param: str) -> RequestError:
    """A RequestError for a parameter that has to be there."""
    return RequestError(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def one_of(value: object, allowed: Iterable[str], param: str) -> RequestError:
    """A RequestError for a value that is not among those allowed."""
    names = ", ".join(f"'{each}'" for each in allowed)
    return RequestError(
        f"Invalid value: '{value}'. Supported values are: {names}.", param=param, code="invalid_value"
    )


# ---- what an engine answered


class EngineFault(Struct, frozen=True):
    """An engine's error: its message, vLLM's name of its type, and the chat field at fault."""

    message: str
    type: str | None = None
    param: str | None = None


def read_engine_error(answer: bytes) -> EngineFault:
    """vLLM's error object, FastAPI's `detail`, or whatever text a proxy answered with instead."""
    try:
        found: Any = msgspec.json.decode(answer)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return EngineFault(answer[:2000].decode("utf-8", "replace").strip() or "The engine gave no reason.")
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return EngineFault(str(error))
    message = error.get("message") or error.get("detail") or error
    kind, param = error.get("type"), error.get("param")
    return EngineFault(
        message if isinstance(message, str) else msgspec.json.encode(message).decode(),
        kind if isinstance(kind, str) else None,
        param if isinstance(param, str) else None,
    )


def engine_failure(status: int, error: EngineFault, *, responses: bool) -> bytes:
    """The body for a status that the engine answered with: its message, OpenAI's type and code."""
    default = ("server_error", "server_error") if status >= 500 else ("invalid_request_error", None)
    kind, code = _BY_STATUS.get(status, default)
    param = _RESPONSES_NAMES.get(error.param or "", error.param) if responses else error.param
    return error_body(ErrorFields(error.message, kind, param, code))
