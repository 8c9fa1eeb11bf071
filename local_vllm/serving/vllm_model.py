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
from local_vllm.protocol.settings import ConverterSettings
from local_vllm.serving.asgi import Answer
from local_vllm.serving.audio import AudioFolder
from local_vllm.serving.calls import Calls
from local_vllm.serving.chat_template import ChatTemplate
from local_vllm.serving.client import Timeouts
from local_vllm.serving.endpoints import EndpointSource
from local_vllm.serving.model_server import ModelServer, Patience
from local_vllm.serving.replica import Replica
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
        )

    async def responses(self, request: Request, body: bytes) -> Answer:
        if self.native is not None:
            return await self._forward(request, body, self._converter.native.to_native)
        return await super().responses(request, body)


def _somebody_elses(settings: VLLMModelSettings) -> WatchedEndpoints:
    return WatchedEndpoints(settings.base_url, settings.api_key.get_secret_value(), settings.model)


def timeouts(settings: ChatSettings) -> Timeouts:
    """The settings that concern waiting for an engine, in the client's words."""
    return Timeouts(
        connect_s=settings.connect_timeout_s,
        total_s=settings.total_timeout_s,
        idle_s=settings.idle_timeout_s,
        first_token_s=settings.first_token_timeout_s,
    )


def patience(settings: OwnEngineSettings) -> Patience:
    """What requests do while an engine of ours is being started again."""
    return Patience(settings.wait_for_engine_s, settings.retry_lost_requests)


def _render(settings: ChatSettings, model: str | None) -> Render | None:
    if not settings.use_completions_api or not settings.render_chat_template:
        return None
    cache = settings.resolved_hf_home() / "hub" if isinstance(settings, LocalVLLMModelSettings) else None
    return ChatTemplate(settings.tokenizer or model or settings.model, cache).render


def store_setting(settings: ChatSettings) -> StoreSetting:
    """What the settings say about stored responses, in the store's words. A native engine has its own store."""
    if settings.is_responses_native:
        return StoreSetting("none")
    return StoreSetting(settings.response_store, settings.response_store_max_mib << 20)


def _has_reasoning_parser(settings: ChatSettings) -> bool:
    """Whether that is known: of an engine of our own."""
    if not isinstance(settings, LocalVLLMModelSettings):
        return False
    return bool(settings.vllm_serve_kwargs.flags().get("reasoning_parser"))


def converter_settings(settings: ChatSettings) -> ConverterSettings:
    """The settings that concern conversion, in the converter's words."""
    return ConverterSettings(
        return_token_id_information=settings.return_token_id_information,
        uses_reasoning_parser=settings.uses_reasoning_parser,
        replace_developer_role_with_system=settings.replace_developer_role_with_system,
        chat_template_kwargs=settings.chat_template_kwargs,
        extra_body=settings.extra_body,
        sampling_overrides=settings.sampling_overrides,
        context_overflow=settings.context_overflow,
        hosted_tools=settings.hosted_tools,
        chat_template_opens_reasoning=settings.chat_template_opens_reasoning,
        engine_parses_reasoning=_has_reasoning_parser(settings),
        reasoning_tags=settings.reasoning_tags,
        uses_interleaved_reasoning=settings.uses_interleaved_reasoning,
        preserve_reasoning_in_assistant_content=settings.preserve_reasoning_in_assistant_content,
        sequential_reasoning_allowed=settings.sequential_reasoning_allowed,
        stores_responses=settings.response_store != "none",
        use_completions_api=settings.use_completions_api,
        max_input_items=settings.max_input_items,
        max_image_mib=settings.max_image_mib,
    )
