"""What vLLM must be told for a placement: flags for `vllm serve` and variables for its process."""

from __future__ import annotations

from local_vllm.plan.placement import Placement

FlagValue = bool | int | float | str | list[object] | dict[str, object] | None


def placement_flags(placement: Placement) -> dict[str, FlagValue]:
    """The parallel sizes, and where rank 0 lives, by vLLM's own names.

    vLLM guesses `data_parallel_address` from the route to the internet; Ray may know the node by another.
    With one rank it ignores the flag, and placement_env says the same.
    """
    topology = placement.topology
    flags: dict[str, FlagValue] = {
        "data_parallel_size": topology.data_parallel_size,
        "tensor_parallel_size": topology.tensor_parallel_size,
        "pipeline_parallel_size": topology.pipeline_parallel_size,
    }
    if topology.prefill_context_parallel_size > 1:
        flags["prefill_context_parallel_size"] = topology.prefill_context_parallel_size
    if placement.data_parallel_size_local is not None:
        flags["data_parallel_size_local"] = placement.data_parallel_size_local
    if topology.data_parallel_size > 1:
        flags["data_parallel_address"] = placement.master_address
    return flags


def placement_env(placement: Placement) -> dict[str, str]:
    """Variables of the `vllm serve` process.

    With one data-parallel rank vLLM ignores `data_parallel_address` and reads VLLM_DP_MASTER_IP. VLLM_HOST_IP
    is the only one of these that vLLM does not copy to its workers on other nodes.
    """
    return {
        "VLLM_RAY_DP_PACK_STRATEGY": str(placement.topology.strategy),
        "VLLM_RAY_DP_PLACEMENT_NODE_IPS": ",".join(placement.allowed_addresses),
        "VLLM_DP_MASTER_IP": placement.master_address,
        "VLLM_HOST_IP": placement.master_address,
    }
