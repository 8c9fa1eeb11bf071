"""A program that outlives its owner's death, to clean up after it: it hears of it through its standard input."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

# What the survivor reads when its owner has cleaned up by itself; after a killed owner it reads nothing.
ALL_DONE = b"done"
EXIT_DEADLINE_S = 10.0


class Survivor:
    """`python -m module arguments` beside this process, in a session of its own, until it is dismissed."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Everything has been cleaned up: the survivor has nothing to do. Without this call it does its work."""
        self._process.communicate(ALL_DONE, timeout=EXIT_DEADLINE_S)


def owner_was_killed() -> bool:
    """In the survivor: wait for the owner's end; whether it left its cleaning up undone."""
    return sys.stdin.buffer.read() != ALL_DONE
