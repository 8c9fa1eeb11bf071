"""Two ways to hold a real engine back, given to vLLM by its flag `logits_processors`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

STEP_S = 0.004
HANGS_WHILE = "LOCAL_VLLM_TESTS_HANG_WHILE"
"""The variable that names a file."""


class HoldsBack(LogitsProcessor):
    """Changes nothing of what is generated."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        """Takes what vLLM gives; nothing of it is needed."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def is_argmax_invariant(self) -> bool:
        return True


class Pace(HoldsBack):
    """Makes every step of the engine so much longer.

    The default model says a thousand tokens a second, faster than the processes between it and a client pass them on
    when all share two CPUs. What a test would then see is a backlog and not what the product does.
    """

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        time.sleep(STEP_S)


class Hang(HoldsBack):
    """Lets no step end while a file is there, as a worker does that waits for a broken device."""

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        while Path(os.environ[HANGS_WHILE]).exists():
            time.sleep(0.05)
