"""From a server's settings to the topology that the planner takes."""

from __future__ import annotations

from local_vllm.config.schema import LocalVLLMModelSettings
from local_vllm.plan.topology import PackStrategy, Topology


def topology_of(server: str, settings: LocalVLLMModelSettings) -> Topology:
    """The settings in the planner's words. Raises PlacementError when the sizes make no sense."""
    sizes = settings.vllm_serve_kwargs
    return Topology(
        server,
        data_parallel_size=sizes.data_parallel_size,
        tensor_parallel_size=sizes.tensor_parallel_size,
        pipeline_parallel_size=sizes.pipeline_parallel_size,
        strategy=PackStrategy(settings.pack_strategy),
        data_parallel_size_local=sizes.data_parallel_size_local,
        prefill_context_parallel_size=sizes.prefill_context_parallel_size or 1,
    )
