"""A model's files: the project's own tiny model is built, a local folder is used as it is, a Hub id is fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from local_vllm.engine.spec import DEFAULT_MODEL
from local_vllm.errors import EngineStartError

# Weights in other formats than the one vLLM loads, often as large as the weights themselves.
_NOT_LOADED = ["original/*", "metal/*", "*.gguf", "*.onnx", "*.pth", "*.msgpack", "*.h5", "*.tflite", "*.ot"]


def provide_weights(model: str, hf_home: Path, token: str | None, tell: Callable[[str], None]) -> str:
    """Make the files of `model` available on this machine; returns what vLLM is to load.

    Args:
        model: a Hub id, a local folder, or DEFAULT_MODEL.
        hf_home: the Hugging Face cache; what lies in its `hub` is not fetched again.
        tell: called with what is being done.

    Raises:
        EngineStartError: the files cannot be had; the message says why and what to change.
    """
    if model == DEFAULT_MODEL:
        tell("building the default model")
        return str(build_default_model())
    if Path(model).expanduser().is_dir():
        return str(Path(model).expanduser().resolve())
    tell(f"fetching the weights of {model}")
    _fetch(model, hf_home / "hub", token)
    return model


def build_default_model() -> Path:
    """Build the tiny model, once for each version of it, below the user's cache."""
    from local_vllm.cpu.default_model import build_default_model as build

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return build(cache / "local_vllm" / DEFAULT_MODEL)


def _fetch(model: str, cache: Path, token: str | None) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        snapshot_download(model, cache_dir=cache, token=token, ignore_patterns=_NOT_LOADED)
    except GatedRepoError as error:
        raise EngineStartError(f"{model} is gated: accept its terms on the Hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise EngineStartError(f"there is no model {model} on the Hub, or HF_TOKEN may not see it") from error
    except LocalEntryNotFoundError as error:
        raise EngineStartError(f"{model} is not in {cache} and the Hub cannot be reached: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise EngineStartError(f"the weights of {model} could not be fetched into {cache}: {error}") from error


def read_model_config(weights: str, hf_home: Path) -> dict[str, object]:
    """The model's config.json, from the folder or the cache; empty if it has none."""
    folder = Path(weights)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(weights, "config.json", cache_dir=hf_home / "hub")
        if not isinstance(cached, str):
            return {}
        folder = Path(cached).parent
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
