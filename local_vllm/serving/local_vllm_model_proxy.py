"""`LocalVLLMModelProxy`: engine and model of a LocalVLLMModel, under request-time settings of its own."""

from __future__ import annotations

from local_vllm.config.schema import LocalVLLMModelProxySettings
from local_vllm.serving.calls import Calls
from local_vllm.serving.endpoints import EndpointSource
from local_vllm.serving.replica import Replica
from local_vllm.serving.vllm_model import VLLMModel, patience


class LocalVLLMModelProxy(VLLMModel):
    """`source` says where the other server's engine is, and ends `calls` when it dies; `model` is that server's."""

    def __init__(
        self,
        name: str,
        settings: LocalVLLMModelProxySettings,
        replica: Replica,
        *,
        source: EndpointSource,
        model: str,
        calls: Calls | None = None,
    ) -> None:
        super().__init__(name, settings, replica, source=source, model=model, calls=calls, patience=patience(settings))
