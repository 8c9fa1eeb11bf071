"""Ctrl-C and SIGTERM: the first asks a run to stop, the second ends it at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Installed explicitly, so that SIGINT works where it was inherited as ignored; again after Ray took SIGTERM."""

    def __init__(self, first: Callable[[], None], second: Callable[[], None]) -> None:
        self._first = first
        self._second = second
        self.count = 0

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for sig in SIGNALS:
            loop.add_signal_handler(sig, self._on_signal)

    def _on_signal(self) -> None:
        self.count += 1
        (self._first if self.count == 1 else self._second)()
