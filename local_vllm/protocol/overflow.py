"""A prompt that is longer than the model's context, and a limit on tokens that is: finds them in an engine's error
by the error's type and numbers.
"""

from __future__ import annotations

import re

from msgspec import Struct

from local_vllm.protocol.errors import EngineFault

# The types that vLLM 0.26 to 0.33 give a request which they refuse, and the field they then name.
_TYPES = frozenset({"BadRequestError", "invalid_request_error", "VLLMValidationError", None})
_FIELDS = frozenset({"input_tokens", "input_text", "prompt"})

# How vLLM states its numbers: the renderer, the chat endpoint, the engine's input check, older versions, and
# the renderer's count of characters, whose own limit stands beside the count.
_NUMBERS = tuple(
    re.compile(pattern)
    for pattern in (
        r"context length is (?P<limit>\d+) tokens.*?contains (?:at least )?(?P<asked>\d+) input tokens",
        r"Input length \((?P<asked>\d+)\) exceeds model's maximum context length \((?P<limit>\d+)\)",
        r"prompt \(length (?P<asked>\d+)\).*? maximum model length of (?P<limit>\d+)",
        r"maximum context length is (?P<limit>\d+) tokens.*?\((?P<asked>\d+) in the (?:messages|prompt)",
        r"contains (?P<asked>\d+) characters \(more than (?P<limit>\d+) characters",
    )
)

# vLLM 0.32 refuses a limit above the whole context; below it, it cuts the limit to what the prompt leaves.
_LIMIT = re.compile(r"max_(?:completion_)?tokens=\d+ cannot be greater than max_model_len=(?P<limit>\d+)")


class Overflow(Struct, frozen=True):
    """How long the prompt was and how long it may be, in the unit of the engine's message (`characters` when
    it refused the text before it counted tokens).
    """

    asked: int
    limit: int
    unit: str = "tokens"


def find_overflow(status: int, error: EngineFault) -> Overflow | None:
    """The overflow that an engine's error reports, or None when it is about something else."""
    if status not in (400, 413, 422) or error.type not in _TYPES:
        return None
    for pattern in _NUMBERS:
        if found := pattern.search(error.message):
            return _overflow(int(found["asked"]), int(found["limit"]), "characters" in found[0], error)
    return None


def limit_that_fits(status: int, error: EngineFault) -> int | None:
    """The highest limit on tokens that an engine takes, if its error is that a limit was higher."""
    found = _LIMIT.search(error.message) if status == 400 and error.type in _TYPES else None
    return int(found["limit"]) if found else None


def _overflow(asked: int, limit: int, characters: bool, error: EngineFault) -> Overflow | None:
    if asked < limit and error.param not in _FIELDS:
        return None
    return Overflow(asked, limit, "characters" if characters else "tokens")
