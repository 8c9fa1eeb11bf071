"""What tests of this folder wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

from local_vllm.processes import tree


def until(fact: Callable[[], bool], deadline_s: float = 10.0) -> bool:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if fact():
            return True
        time.sleep(0.05)
    return False


def gone(pid: int) -> bool:
    return tree.start_time(pid) is None
