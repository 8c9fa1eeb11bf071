"""What can be told of a model's files before they are there: what vLLM will load, and its config.json.

Providing the files is left to weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from local_vllm.engine.spec import DEFAULT_MODEL
from local_vllm.engine.weights import default_model_folder, local_folder, read_model_config


def is_of_the_hub(model: str) -> bool:
    """Whether the files come from the Hub: then vLLM loads the folder that they were fetched to."""
    return model != DEFAULT_MODEL and local_folder(model) is None and not model.startswith(("/", "~", "."))


def foreseen_weights(model: str) -> str:
    """The folder that vLLM is told to load; the Hub id where the folder is not known yet."""
    return str(default_model_folder()) if model == DEFAULT_MODEL else local_folder(model) or model


def foreseen_model_config(model: str, hf_home: Path) -> Mapping[str, object] | None:
    """The model's config.json as far as this machine knows it; None if it does not."""
    if model == DEFAULT_MODEL:
        from local_vllm.cpu.default_model import model_config

        return model_config()
    return read_model_config(foreseen_weights(model), hf_home) or None
