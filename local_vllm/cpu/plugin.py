"""vLLM platform plugin: the CPU engine on Ray's logical GPUs, when it is asked for.

vLLM calls `register` in every process that it starts. The answer is None, and vLLM chooses its platform as
if the plugin were not installed, unless the environment says otherwise. The platform itself is in
`logical_gpu_platform.py`.
"""

from __future__ import annotations

import os

SWITCH = "VLLM_LOCAL_LOGICAL_GPUS"
"""Set to 1 to switch the platform on. vLLM copies variables that begin with VLLM_ to its Ray workers."""


def register() -> str | None:
    """The qualified name of our platform class if `SWITCH` is 1, else None."""
    if os.environ.get(SWITCH) != "1":
        return None
    return "local_vllm.cpu.logical_gpu_platform.LogicalGpuCpuPlatform"
