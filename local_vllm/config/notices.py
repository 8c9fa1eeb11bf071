"""What is worth saying about a set of config files although nothing is wrong with it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from local_vllm.config.names import is_server, referenced_names
from local_vllm.config.nearest import nearest
from local_vllm.config.redact import is_secret
from local_vllm.config.schema import GLOBAL_KEYS, LocalVLLMModelSettings, ServerConfig


def merge_notices(sources: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each server that stands in several files (label -> tree, in merge order)."""
    places: dict[str, list[str]] = {}
    for label, tree in sources.items():
        for name in filter(lambda name: is_server(tree[name]), tree):
            places.setdefault(name, []).append(label)
    for server, labels in places.items():
        if len(labels) > 1:
            listed = f"{', '.join(labels[:-1])} and {labels[-1]}"
            yield f"{server} stands in {listed}: they are merged, the last one wins"


def secret_notices(given: Iterable[str]) -> Iterator[str]:
    """A sentence for each secret among the keys that the command line gives."""
    for key in given:
        if key in GLOBAL_KEYS and is_secret(key):
            yield f"{key} stands on the command line, where everybody on this machine can read it: keep it in env.yaml"


def code_notices(servers: Iterable[ServerConfig]) -> Iterator[str]:
    """A sentence for each engine that runs the code which comes with its model."""
    for server in servers:
        if isinstance(server.settings, LocalVLLMModelSettings):
            if str(server.settings.vllm_serve_kwargs.flags().get("trust_remote_code", False)).lower() != "false":
                yield f"{server.name}: trust_remote_code is on, so code that comes with {server.settings.model} runs here"


def spelling_notices(sources: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each unused variable that nearly spells a global key."""
    used = {name for tree in sources.values() for name in referenced_names(tree)}
    for label, tree in sources.items():
        for key in tree.keys() - GLOBAL_KEYS - used:
            match = nearest(key, GLOBAL_KEYS, cutoff=0.85)
            if match and not is_server(tree[key]):
                yield f"{label}: `{key}` is only a variable; did you mean the global key `{match}`?"
