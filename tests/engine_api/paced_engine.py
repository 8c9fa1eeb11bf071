"""A pace for the engine of these tests, given to vLLM by its flag `logits_processors`.

The default model says a thousand tokens a second, faster than the processes between it and a client pass them on when
all share two CPUs. What the tests would then see is a backlog and not what the product does.
"""

from __future__ import annotations

import time

import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

STEP_S = 0.004


class Pace(LogitsProcessor):
    """Makes every step of the engine so much longer, and changes nothing else."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        """Takes what vLLM gives; nothing of it is needed."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        time.sleep(STEP_S)
