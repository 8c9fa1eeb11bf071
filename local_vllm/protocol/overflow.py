"""A prompt that is longer than the model's context: finds it in an engine's error by the error's type and
numbers.
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


def _overflow(asked: int, limit: int, characters: bool, error: EngineFault) -> Overflow | None:
    if asked < limit and error.param not in _FIELDS:
        return None
    return Overflow(asked, limit, "characters" if characters else "tokens")
