"""`LocalVLLMModel`: a VLLMModel whose engine is ours. Starting that engine is left to the run."""

from __future__ import annotations

from local_vllm.config.schema import LocalVLLMModelSettings
from local_vllm.engine.topology import topology_of
from local_vllm.serving.calls import Calls
from local_vllm.serving.endpoints import EndpointSource
from local_vllm.serving.replica import Replica
from local_vllm.serving.vllm_model import VLLMModel, patience


class LocalVLLMModel(VLLMModel):
    """`source` says where the engine is, and with which key, as soon as it is up, and ends `calls` when it dies.

    Raises PlacementError when the parallel sizes make no sense.
    """

    def __init__(
        self,
        name: str,
        settings: LocalVLLMModelSettings,
        replica: Replica,
        *,
        source: EndpointSource,
        calls: Calls | None = None,
    ) -> None:
        self.topology = topology_of(name, settings)
        super().__init__(name, settings, replica, source=source, calls=calls, patience=patience(settings))
