"""Keys that make the ids of responses unique, and that nobody can guess."""

from __future__ import annotations

import os
from collections.abc import Iterator

KEY_BYTES = 16
# The system is asked for many at a time: a call of it costs as much as converting part of a request.
AT_A_TIME = 256


def unpredictable_keys() -> Iterator[str]:
    """Without end: 32 hex digits each, of the system's random numbers."""
    while True:
        drawn = os.urandom(AT_A_TIME * KEY_BYTES)
        for start in range(0, len(drawn), KEY_BYTES):
            yield drawn[start : start + KEY_BYTES].hex()
