"""What a model server's configuration says about conversion. Values only: `config` checks them,
`precedence.py` applies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from local_vllm.protocol.limits import MAX_IMAGE_MIB, MAX_INPUT_ITEMS


@dataclass(frozen=True, slots=True)
class ConverterSettings:
    """Request-time settings of one model server. The names are those of the configuration's keys.

    `chat_template_opens_reasoning` says that the model's chat template already ends in an opening `<think>`.
    A whole answer shows this by its closing tag; an answer that was cut off before it does not.
    `engine_parses_reasoning` is true where the engines are known to have a reasoning parser; otherwise their answers
    show it. `stores_responses` is false where `response_store` is none.
    """

    return_token_id_information: bool = False
    uses_reasoning_parser: bool = True
    replace_developer_role_with_system: bool = False
    chat_template_kwargs: Mapping[str, Any] | None = None
    extra_body: Mapping[str, Any] | None = None
    sampling_overrides: Mapping[str, Any] | None = None
    context_overflow: Literal["error", "incomplete"] = "error"
    hosted_tools: Literal["drop", "refuse"] = "drop"
    chat_template_opens_reasoning: bool = False
    engine_parses_reasoning: bool = False
    reasoning_tags: tuple[str, str] | None = None
    uses_interleaved_reasoning: bool = True
    preserve_reasoning_in_assistant_content: bool = False
    sequential_reasoning_allowed: bool = True
    stores_responses: bool = True
    use_completions_api: bool = False
    max_input_items: int = MAX_INPUT_ITEMS
    max_image_mib: int = MAX_IMAGE_MIB
