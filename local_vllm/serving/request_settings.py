"""A model server's configuration in the words of those who answer its requests: converter, client, direct way.

Values only: nothing is loaded or opened.
"""

from __future__ import annotations

from dataclasses import replace

from local_vllm.config.schema import ChatSettings, LocalVLLMModelSettings
from local_vllm.protocol.settings import ConverterSettings
from local_vllm.serving.client import Timeouts
from local_vllm.serving.direct_settings import DirectSettings, Template


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


def timeouts(settings: ChatSettings) -> Timeouts:
    """The settings that concern waiting for an engine, in the client's words."""
    return Timeouts(
        connect_s=settings.connect_timeout_s,
        total_s=settings.total_timeout_s,
        idle_s=settings.idle_timeout_s,
        first_token_s=settings.first_token_timeout_s,
    )


def template_of(settings: ChatSettings, model: str | None = None) -> Template | None:
    """The chat template to apply before an engine is asked for plain completions; `model` is what it serves, if known."""
    if not settings.use_completions_api or not settings.render_chat_template:
        return None
    cache = str(settings.resolved_hf_home() / "hub") if isinstance(settings, LocalVLLMModelSettings) else None
    return Template(settings.tokenizer or model or settings.model, cache)


def direct_settings(name: str, settings: LocalVLLMModelSettings) -> DirectSettings:
    """The settings that concern the Responses API in the engine's own API server; `name` is the server's."""
    model = settings.served_model_names[0]
    return DirectSettings(
        name,
        model,
        other_names=tuple(other for other in (settings.model, name) if other != model),
        converter=replace(converter_settings(settings), stores_responses=False),
        timeouts=timeouts(settings),
        max_request_mib=settings.max_request_mib,
        audio_root=settings.audio_root,
        template=template_of(settings),
    )
