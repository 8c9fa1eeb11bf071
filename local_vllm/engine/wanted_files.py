"""Which files of a model's repository vLLM loads, from their names alone. Pure; fetching them is fetch.py's.

The choice between formats is that of vLLM's default loader: Mistral's own weights before safetensors before
.bin before .pt, and of the safetensors those that the index names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

# What no loader of vLLM opens, or opens only where it is named by itself.
_OTHER_FORMATS = (
    "*.gguf", "*.ggml", "*.llamafile", "*.onnx", "*.onnx_data", "*.onnx.data", "*.pth", "*.ckpt", "*.msgpack",
    "*.h5", "*.ot", "*.tflite", "*.mlmodel", "*.nemo", "*.dduf", "*.engine", "*.zip", "*.tar", "*.tar.gz",
)  # fmt: skip
_OF_THE_TRAINER = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*",
)
_FOR_READERS = (".git*", "*.md", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.svg", "*.pdf", "*.mp4")
# Copies of the weights for other programs, and states of the training.
_OTHER_FOLDERS = (
    "original", "metal", "onnx", "openvino", "coreml", "gguf", "ggml", "mlx", "flax", "tensorrt*",
    "*.mlpackage", "checkpoint-*", "global_step*", "runs",
)  # fmt: skip

MISTRAL = "consolidated*.safetensors"
_LOADED = ("*.safetensors", "*.bin", "*.pt")
_FORMATS_OF: dict[str, tuple[str, ...]] = {
    "hf": _LOADED,
    **dict.fromkeys(
        ("safetensors", "fastsafetensors", "instanttensor", "runai_streamer"), ("*.safetensors",)
    ),
    "mistral": (MISTRAL,),
    "pt": ("*.pt",),
    "npcache": ("*.bin", "*.pt"),
    "dummy": (),
}


def wanted_files(names: Iterable[str], load_format: str = "auto", indexed: Collection[str] = ()) -> list[str]:
    """Those of `names` (paths in the repository) that a vLLM with this `load_format` loads.

    Args:
        load_format: vLLM's flag; of one that is not known here every format of weights is kept.
        indexed: the weights that the index names; empty without an index.
    """
    kept = [name for name in names if not _is_for_others(name)]
    weights = [name for name in kept if is_weights(name)]
    load_format = _resolved(load_format, weights)
    if load_format not in _FORMATS_OF:
        return kept
    loaded = {*_of_the_root(weights, load_format, indexed), *_of_folders(weights, load_format)}
    return [name for name in kept if name in loaded or not is_weights(name)]


def is_weights(name: str) -> bool:
    """Whether the file holds weights, in a format that vLLM loads."""
    return _matches(_file(name), _LOADED)


def index_name(names: Collection[str], load_format: str = "auto") -> str | None:
    """The index of the safetensors that will be loaded, if there is one among `names`."""
    mistral = _resolved(load_format, [name for name in names if not _is_for_others(name)]) == "mistral"
    name = "consolidated.safetensors.index.json" if mistral else "model.safetensors.index.json"
    return name if name in names else None


def indexed_files(index: str) -> frozenset[str]:
    """The files that an index (its JSON text) names; none if it cannot be read."""
    try:
        return frozenset(json.loads(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return frozenset()


def _of_the_root(weights: Iterable[str], load_format: str, indexed: Collection[str]) -> list[str]:
    root = [name for name in weights if "/" not in name]
    for pattern in _FORMATS_OF[load_format]:
        if chosen := [name for name in root if fnmatchcase(name, pattern)]:
            originals = [name for name in chosen if not _is_a_copy(name, pattern, indexed)]
            return (originals or chosen) + _beside(root)
    return []


def _is_a_copy(name: str, pattern: str, indexed: Collection[str]) -> bool:
    """Whether these safetensors repeat the weights that are loaded: heads of other names are no copies."""
    if pattern == "*.safetensors" and fnmatchcase(name, MISTRAL):
        return True
    return bool(indexed) and name not in indexed and name.startswith(("model", "consolidated"))


def _beside(root: Iterable[str]) -> list[str]:
    """Small heads that some models keep in .pt files beside their weights."""
    return [
        name for name in root if name.endswith(".pt") and not _matches(name, ("consolidated*", "*model*"))
    ]


def _of_folders(weights: Iterable[str], load_format: str) -> list[str]:
    """Parts of some models lie in folders (projectors, adapters, vocoders), each in one format."""
    if load_format == "dummy":
        return []
    below = [name for name in weights if "/" in name]
    with_safetensors = {_folder(name) for name in below if name.endswith(".safetensors")}
    return [name for name in below if name.endswith(".safetensors") or _folder(name) not in with_safetensors]


def _resolved(load_format: str, names: Iterable[str]) -> str:
    if load_format != "auto":
        return load_format
    return "mistral" if any(fnmatchcase(_file(name), MISTRAL) for name in names) else "hf"


def _is_for_others(name: str) -> bool:
    folders = PurePosixPath(name).parts[:-1]
    return _matches(_file(name), _OTHER_FORMATS + _OF_THE_TRAINER + _FOR_READERS) or any(
        _matches(folder, _OTHER_FOLDERS) for folder in folders
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _file(name: str) -> str:
    return name.rpartition("/")[2]


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
