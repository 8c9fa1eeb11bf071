"""`LocalVLLMModel`: a VLLMModel whose engine is ours. Starting that engine is left to the run."""

from __future__ import annotations

from local_vllm.config.schema import LocalVLLMModelSettings
from local_vllm.plan.topology import PackStrategy, Topology
from local_vllm.serving.endpoints import EndpointSource
from local_vllm.serving.replica import Replica
from local_vllm.serving.vllm_model import VLLMModel


class LocalVLLMModel(VLLMModel):
    """`source` says where the engine is, and with which key, as soon as it is up.

    Raises PlacementError when the parallel sizes make no sense.
    """

    def __init__(
        self, name: str, settings: LocalVLLMModelSettings, replica: Replica, *, source: EndpointSource
    ) -> None:
        self.topology = topology_of(name, settings)
        super().__init__(name, settings, replica, source=source)


def topology_of(server: str, settings: LocalVLLMModelSettings) -> Topology:
    """The settings in the planner's words."""
    sizes = settings.vllm_serve_kwargs
    return Topology(
        server,
        data_parallel_size=sizes.data_parallel_size,
        tensor_parallel_size=sizes.tensor_parallel_size,
        pipeline_parallel_size=sizes.pipeline_parallel_size,
        strategy=PackStrategy(settings.pack_strategy),
        data_parallel_size_local=sizes.data_parallel_size_local,
    )
