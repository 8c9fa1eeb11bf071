"""What vLLM's CPU engine needs to be told beyond what the configuration says. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from local_vllm.plan.topology import Topology

# Lets vLLM's Ray backends count logical GPUs on a machine without any (cpu/plugin.py reads it).
ENVIRONMENT = {"VLLM_LOCAL_LOGICAL_GPUS": "1"}
SMALLEST_KV_BYTES = 64 * 2**20
UNKNOWN_KV_BYTES = "<room for two sequences>"
_BLOCK_TOKENS = 128
_BYTES_OF_DTYPE = {"float32": 4, "float": 4}


def flags(
    wanted: Mapping[str, object], topology: Topology, model_config: Mapping[str, object] | None
) -> dict[str, object]:
    """Defaults for flags that `wanted` leaves open, in snake_case.

    Without a model_config, what it decides is a word in angle brackets.
    """
    chosen: dict[str, object] = {}
    if not wanted.keys() & {"enforce_eager", "compilation_config"}:
        # Compiling costs most of a minute on a CPU. With a pipeline vLLM skips the profile run that its stages
        # depend on unless something is "compiled"; the eager backend is that something.
        pipelined = topology.pipeline_parallel_size > 1
        chosen |= {"compilation_config": {"mode": 1, "backend": "eager"}} if pipelined else {"enforce_eager": True}
    if "kv_cache_memory_bytes" not in wanted:
        chosen["kv_cache_memory_bytes"] = (
            UNKNOWN_KV_BYTES
            if model_config is None
            else max(SMALLEST_KV_BYTES, 2 * sequence_kv_bytes(wanted, topology, model_config))
        )
    return chosen


def sequence_kv_bytes(
    wanted: Mapping[str, object], topology: Topology, model_config: Mapping[str, object]
) -> int:
    """Bytes of KV cache that one worker needs for one sequence of the longest length; 0 if it cannot be told."""
    try:
        layers = math.ceil(int(model_config["num_hidden_layers"]) / topology.pipeline_parallel_size)
        heads = int(model_config["num_attention_heads"])
        kv_heads = math.ceil(int(model_config.get("num_key_value_heads") or heads) / topology.tensor_parallel_size)
        head_size = int(model_config.get("head_dim") or int(model_config["hidden_size"]) // heads)
        tokens = int(wanted.get("max_model_len") or model_config["max_position_embeddings"])
    except (KeyError, TypeError, ValueError):
        return 0
    dtype_bytes = _BYTES_OF_DTYPE.get(str(wanted.get("dtype", "auto")), 2)
    blocks = math.ceil(tokens / _BLOCK_TOKENS) + 1
    return 2 * layers * kv_heads * head_size * dtype_bytes * blocks * _BLOCK_TOKENS
