"""A model's chat template, applied here for engines that are asked for plain completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from local_vllm.engine.foreseen import foreseen_weights
from local_vllm.engine.spec import DEFAULT_MODEL
from local_vllm.engine.weights import provide_default_model
from local_vllm.errors import ConfigError, Problem, RequestError

# What transformers takes beside the variables, and a request must not decide: vLLM refuses the two as well.
_OURS = frozenset({"chat_template", "tokenize"})


class ChatTemplate:
    """The template that comes with the tokenizer of `model`: a Hub id, a folder, or the default model. What is
    fetched from the Hub is looked for in `cache` first, a Hub cache; None: that of the environment.

    Raises:
        ConfigError: it cannot be loaded, or has no chat template.
    """

    def __init__(self, model: str, cache: str | None = None) -> None:
        # Seconds to import, and needed by few servers.
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(_place(model), cache_dir=cache)
        except Exception as error:
            raise _unusable(f"the tokenizer of {model} cannot be loaded ({error})") from error
        if not self._tokenizer.chat_template:
            raise _unusable(f"the tokenizer of {model} has no chat template")

    def render(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        """The prompt, up to where the model goes on. Raises RequestError when the template refuses it."""
        if not _OURS.isdisjoint(variables):
            message = f"Invalid 'chat_template_kwargs': {', '.join(sorted(_OURS))} cannot be set by a request."
            raise RequestError(message, param="chat_template_kwargs", code="invalid_value")
        given = {"add_generation_prompt": not variables.get("continue_final_message")} | dict(variables)
        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, **given)
        except Exception as error:
            message = f"The chat template does not take these messages: {error}"
            raise RequestError(message, param="input", code="invalid_value") from error


def _place(model: str) -> str:
    """What vLLM loads for it. An engine may be about to build the default model, perhaps on another node."""
    place = foreseen_weights(model)
    if model == DEFAULT_MODEL:
        provide_default_model(place)
    return place


def _unusable(what: str) -> ConfigError:
    remedy = "name one that has one in `tokenizer`, or leave out `render_chat_template`"
    return ConfigError([Problem("tokenizer", f"{what}; {remedy}")])
