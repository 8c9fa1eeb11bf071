"""What of a configuration may be shown: secrets are known by the names that they stand under.

A URL may have one in it, before the host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAMES = ("KEY", "KEYS", "APIKEY", "APIKEYS", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS")
_PASSWORD = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def is_secret(name: str) -> bool:
    """Whether a variable or key of that name holds a secret: its last word says so."""
    return re.split(r"[_\-.]", name.upper())[-1] in _SECRET_NAMES


def redacted(value: Any) -> Any:
    """The same value without its secrets, however deep they lie."""
    if isinstance(value, Mapping):
        return {key: _redacted_item(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return _PASSWORD.sub(HIDDEN, value) if isinstance(value, str) else value


def _redacted_item(name: str, value: Any) -> Any:
    return HIDDEN if value and is_secret(name) else redacted(value)
