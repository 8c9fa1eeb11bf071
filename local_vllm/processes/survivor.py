"""A program that outlives its owner's death, to clean up after it: it hears of it through its standard input."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# What the survivor reads when its owner has cleaned up by itself; after a killed owner it reads nothing.
ALL_DONE = b"done"
EXIT_DEADLINE_S = 10.0


@contextmanager
def survivor(module: str, arguments: Sequence[str]) -> Iterator[None]:
    """Run `python -m module arguments` beside the block, in a session of its own, and dismiss it after."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.communicate(ALL_DONE, timeout=EXIT_DEADLINE_S)


def owner_was_killed() -> bool:
    """In the survivor: wait for the owner's end; whether it left its cleaning up undone."""
    return sys.stdin.buffer.read() != ALL_DONE
