"""What can be told of a model's files before they are there: what vLLM will load, and its config.json.

Providing the files is left to weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from local_vllm.engine.spec import DEFAULT_MODEL
from local_vllm.engine.weights import read_model_config


def default_model_folder() -> Path:
    """Where the default model is built, below the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "local_vllm" / DEFAULT_MODEL


def foreseen_weights(model: str) -> str:
    """The folder or Hub id that vLLM is told to load."""
    if model == DEFAULT_MODEL:
        return str(default_model_folder())
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


def foreseen_model_config(model: str, hf_home: Path) -> Mapping[str, object] | None:
    """The model's config.json as far as this machine knows it; None if it does not."""
    if model == DEFAULT_MODEL:
        from local_vllm.cpu.default_model import model_config

        return model_config()
    return read_model_config(foreseen_weights(model), hf_home) or None
