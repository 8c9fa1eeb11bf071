"""What to change when an engine has run out of memory, with the values that this engine has. Pure.

The settings are those that the vLLM documents name; what vLLM prints decides whether it was memory at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Of PyTorch; of vLLM when its cache of keys and values has no room; and when other programs hold the GPU's memory.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|No available memory for the cache blocks|KV cache is needed, which is larger|"
    r"is less than desired GPU memory utilization",
    re.IGNORECASE,
)
# vLLM's own values where the config has none.
_UTILIZATION, _SEQUENCES, _OFFLOAD_GB = 0.9, 256, 8
_TRY_UTILIZATION = 0.85
_HALVED_FROM = 32768


def remedy(log: str, flags: Mapping[str, Any]) -> str:
    """What to set otherwise, as a sentence; empty when `log`, the end of what vLLM printed, is not about memory."""
    if not _OUT_OF_MEMORY.search(log):
        return ""
    return "Out of memory: " + "; ".join(_settings(flags)) + " (all in vllm_serve_kwargs), or spread the model wider"


def _settings(flags: Mapping[str, Any]) -> Iterator[str]:
    yield _advice("reduce", "gpu_memory_utilization", flags, _UTILIZATION, _lower_utilization)
    yield _advice("lower", "max_model_len", flags, None, _half)
    yield _advice("lower", "max_num_seqs", flags, _SEQUENCES, _half)
    offload = flags.get("cpu_offload_gb")
    yield f"set cpu_offload_gb: {_OFFLOAD_GB}" if offload is None else f"raise cpu_offload_gb (now {offload})"


def _advice(verb: str, name: str, flags: Mapping[str, Any], default: Any, better: Any) -> str:
    value = flags.get(name, default)
    now = f"now {value}" if name in flags else f"now vLLM's {value}" if value is not None else "now the model's own"
    return f"{verb} {name} ({now}{better(value)})"


def _lower_utilization(value: Any) -> str:
    try:
        return f", try {_TRY_UTILIZATION}" if float(value) > _TRY_UTILIZATION else ", others may need that memory"
    except (TypeError, ValueError):
        return ""


def _half(value: Any) -> str:
    if value is None:
        return f", try {_HALVED_FROM // 2}"
    return f", try {int(value) // 2}" if str(value).isdigit() and int(value) > 1 else ""
