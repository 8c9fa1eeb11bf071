"""How long a command takes: in CPU seconds, which a busy machine hardly changes."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TRIES = 3


def timed(
    command: Sequence[str | Path], cwd: Path, env: Mapping[str, str]
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run it a few times; what it did, and the CPU seconds of the fastest."""
    took = []
    for _ in range(TRIES):
        before = _seconds()
        done = subprocess.run(command, cwd=cwd, env=dict(env), capture_output=True, text=True, timeout=60)
        took.append(_seconds() - before)
    return done, min(took)


def _seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
