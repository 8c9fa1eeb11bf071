"""`VLLMModel`: a model server over vLLM engines, those that the configuration names or those of a source."""

from __future__ import annotations

from dataclasses import replace

from local_vllm.config.schema import (
    ChatSettings,
    LocalVLLMModelSettings,
    OwnEngineSettings,
    VLLMModelSettings,
)
from local_vllm.protocol.completions import Render
from local_vllm.protocol.converter import Converter
from local_vllm.serving.asgi import Answer
from local_vllm.serving.audio import AudioFolder
from local_vllm.serving.calls import Calls
from local_vllm.serving.chat_template import ChatTemplate
from local_vllm.serving.endpoints import EndpointSource
from local_vllm.serving.model_server import ModelServer, Patience
from local_vllm.serving.replica import Replica
from local_vllm.serving.request_settings import converter_settings, template_of, timeouts
from local_vllm.serving.requests import Request
from local_vllm.serving.response_store import StoreSetting
from local_vllm.serving.watched_endpoints import WatchedEndpoints


class VLLMModel(ModelServer):
    """Built from checked settings. Without a `source` it is in front of the engines at their `base_url`."""

    def __init__(
        self,
        name: str,
        settings: ChatSettings,
        replica: Replica,
        *,
        source: EndpointSource | None = None,
        model: str | None = None,
        calls: Calls | None = None,
        patience: Patience = Patience(),
    ) -> None:
        max_body_bytes = settings.max_request_mib << 20
        super().__init__(
            name,
            model or settings.model,
            source or _somebody_elses(settings),
            Converter(converter_settings(settings), render=_render(settings, model)),
            replica.client(settings.default_headers, timeouts=timeouts(settings), calls=calls, server=name),
            sessions=replica.sessions(name),
            limits=replace(replica.limits, max_body_bytes=max_body_bytes),
            store=replica.store(store_setting(settings)),
            audio=AudioFolder(settings.audio_root, max_body_bytes),
            native=settings.is_responses_native,
            patience=patience,
            max_in_flight=settings.max_requests_in_flight,
            replica=replica.name,
            direct=isinstance(settings, LocalVLLMModelSettings) and settings.direct_responses,
        )

    async def responses(self, request: Request, body: bytes) -> Answer:
        if self.native is not None:
            return await self._forward(request, body, self._converter.native.to_native)
        return await super().responses(request, body)


def _somebody_elses(settings: VLLMModelSettings) -> WatchedEndpoints:
    return WatchedEndpoints(settings.base_url, settings.api_key.get_secret_value(), settings.model)


def patience(settings: OwnEngineSettings) -> Patience:
    """What requests do while an engine of ours is being started again."""
    return Patience(settings.wait_for_engine_s, settings.retry_lost_requests)


def _render(settings: ChatSettings, model: str | None) -> Render | None:
    template = template_of(settings, model)
    return ChatTemplate(template.tokenizer, template.cache).render if template is not None else None


def store_setting(settings: ChatSettings) -> StoreSetting:
    """What the settings say about stored responses, in the store's words. A native engine has its own store."""
    if settings.is_responses_native:
        return StoreSetting("none")
    return StoreSetting(settings.response_store, settings.response_store_max_mib << 20)
