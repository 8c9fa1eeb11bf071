"""The CPU platform of vLLM, with workers that Ray counts as GPUs.

Ray schedules and accounts logical GPUs exactly as real ones, so placement is the one of a GPU cluster.
Everything that computes is left to vLLM's own CpuPlatform.
"""

from __future__ import annotations

from vllm.platforms.cpu import CpuPlatform


class LogicalGpuCpuPlatform(CpuPlatform):
    """CpuPlatform whose Ray workers take one unit of the resource `GPU` each."""

    ray_device_key: str = "GPU"
