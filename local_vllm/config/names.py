"""What the names in a configuration mean: other spellings of keys, short paths, the alias policy_model.

Pure functions on plain mappings. A tree is `{server: {kind: {implementation: settings}}, variable: value}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from local_vllm.config.nearest import did_you_mean, nearest
from local_vllm.config.schema import GLOBAL_KEYS, KINDS, MODELS, REGISTRY, GlobalSettings, implementations
from local_vllm.config.vllm_serve_flags import snake_case

POLICY_MODEL = "policy_model"
PROXY = "local_vllm_model_proxy"
_FLAGS = "vllm_serve_kwargs"
_INTERPOLATION = re.compile(r"\$\{([^${}]*)\}")


def is_server(value: Any) -> bool:
    """Whether a top-level value is a server, rather than a variable or a global key."""
    return isinstance(value, Mapping) and any(kind in value for kind in KINDS)


def canonical_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same tree in the spelling of the schema (not `model_name`, `concurrency` or kebab-case flags)."""
    folded = {key: _canonical_server(value) if is_server(value) else value for key, value in tree.items()}
    # The other spelling stays as well: it may be used as a variable, `${HF_TOKEN}` say.
    known = {target: folded[alias] for alias, target in GlobalSettings.aliases.items() if alias in folded}
    return known | folded


def canonical_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """The same for the full path of one key."""
    if len(path) == 1:
        return (GlobalSettings.aliases.get(path[0], path[0]),)
    if len(path) < 4 or path[1] not in KINDS:
        return path
    name, kind, implementation, key, *rest = path
    key = _aliases(kind, implementation).get(key, key)
    if key == _FLAGS and rest:
        rest[0] = snake_case(rest[0])
    return (name, kind, implementation, key, *rest)


def full_path(path: tuple[str, ...], tree: Mapping[str, Any]) -> tuple[str, ...]:
    """`<server>.<implementation>.<key>` with the kind put in; any other path as it is."""
    if len(path) < 2 or path[1] in KINDS:
        return path
    server = _mapping(tree.get(path[0]))
    there = (kind for kind in KINDS if path[1] in _mapping(server.get(kind)))
    kind = next(there, None) or implementations().get(path[1])
    return (path[0], kind, *path[1:]) if kind else path


def policy_models(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The model servers that are no judge and no proxy: when there is just one, policy_model means it."""
    return tuple(
        name
        for name, value in tree.items()
        if "judge" not in name.lower()
        and is_server(value)
        and any(implementation != PROXY for implementation in _mapping(value.get(MODELS)))
    )


def meant_by(name: str, tree: Mapping[str, Any]) -> str:
    """`name`, or the server that it stands for when it is policy_model and no server is called so."""
    candidates = policy_models(tree)
    if name == POLICY_MODEL and name not in tree and len(candidates) == 1:
        return candidates[0]
    return name


def interpolations(text: str) -> list[str]:
    """What stands inside each `${...}` of a text, the innermost where they are nested."""
    return _INTERPOLATION.findall(text)


def referenced_names(value: Any) -> Iterator[str]:
    """The top-level names that the `${...}` anywhere in a tree lead to."""
    if isinstance(value, str):
        yield from (inside.split(".")[0].strip() for inside in interpolations(value) if ":" not in inside)
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from referenced_names(item)


def unknown_name(path: tuple[str, ...], tree: Mapping[str, Any]) -> str | None:
    """Why an override of `path` means nothing, if so: no global key, server or variable begins it."""
    known = {*tree, *referenced_names(tree), *GLOBAL_KEYS}
    candidates = policy_models(tree)
    if path[0] in known:
        return None
    if path[0] == POLICY_MODEL and len(candidates) > 1:
        return f"could be any of {', '.join(candidates)}: name one"
    if len(path) > 3 and path[1] in KINDS and not nearest(path[0], known, cutoff=0.8):
        return None
    return f"unknown key{did_you_mean(path[0], known)}"


def _canonical_server(server: Mapping[str, Any]) -> dict[str, Any]:
    return {
        kind: {name: _canonical_settings(kind, name, settings) for name, settings in value.items()}
        if kind in KINDS and isinstance(value, Mapping)
        else value
        for kind, value in server.items()
    }


def _canonical_settings(kind: str, implementation: str, settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    renamed = _rename(settings, _aliases(kind, implementation))
    if isinstance(renamed.get(_FLAGS), Mapping):
        renamed[_FLAGS] = {snake_case(str(flag)): value for flag, value in renamed[_FLAGS].items()}
    return renamed


def _rename(mapping: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    # A key that is there in both spellings keeps both, and the schema then names the one that is too many.
    names = {key: aliases.get(key, key) for key in mapping}
    return {key if names[key] in mapping else names[key]: value for key, value in mapping.items()}


def _aliases(kind: str, implementation: str) -> Mapping[str, str]:
    settings = REGISTRY.get(kind, {}).get(implementation)
    return settings.aliases if settings else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
