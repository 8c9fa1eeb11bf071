"""How long a rollout waited for what, as a Server-Timing header tells it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = ("model", "tools", "verify")


class Timings:
    """Seconds by part; `total` counts from when this was made."""

    __slots__ = ("_begun", "_spent")

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._spent = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Counts the time inside to `part`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._spent[part] += time.perf_counter() - begun

    def header(self) -> tuple[bytes, bytes]:
        """`model;dur=812.1, ...` in milliseconds."""
        spent = self._spent | {"total": time.perf_counter() - self._begun}
        value = ", ".join(f"{part};dur={seconds * 1000:.1f}" for part, seconds in spent.items())
        return b"server-timing", value.encode()
