"""Checks a resolved configuration tree against the schema, and reports all that is wrong with it together.

Where the tree came from, and what could not be resolved in it, is compose.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from local_vllm.config.apps import AppError
from local_vllm.config.findings import REQUIRED
from local_vllm.config.implementations import Implementations, names_of
from local_vllm.config.names import POLICY_MODEL, PROXY, is_server, meant_by, policy_models
from local_vllm.config.nearest import did_you_mean, nearest
from local_vllm.config.schema import (
    GLOBAL_KEYS,
    KINDS,
    MODELS,
    REGISTRY,
    GlobalSettings,
    ServerConfig,
    ServerReference,
    Settings,
    VLLMModelSettings,
    implementations,
)
from local_vllm.errors import Problem

_PLAIN_WORDS = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "dict_type": "must be a mapping of keys to values",
    "tuple_type": "must be a list",
    "model_type": "must be a mapping of keys to values",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must not be empty",
}

S = TypeVar("S", bound=Settings)


def check_globals(tree: Mapping[str, Any], problems: list[Problem]) -> GlobalSettings | None:
    """The global settings among the top-level keys; None when they have problems, which are appended."""
    given = {key: tree[key] for key in GlobalSettings.model_fields if key in tree}
    return _check(GlobalSettings, given, "", problems)


def check_servers(
    tree: Mapping[str, Any], known: Implementations, problems: list[Problem]
) -> tuple[ServerConfig, ...]:
    """The servers of the tree that have no problem, in its order; the problems of the others are appended."""
    return tuple(
        server
        for name, value in tree.items()
        if isinstance(value, Mapping) and name not in GLOBAL_KEYS
        for server in _servers(name, value, known, problems)
    )


def check_references(tree: Mapping[str, Any], known: Implementations, problems: list[Problem]) -> None:
    """Appends every reference to a server that is not there, or is not of the kind that is asked for."""
    for name, kind, implementation, raw in _all_settings(tree):
        for key, reference in _references(_settings(known, kind, implementation, raw), raw):
            if message := _reference_problem(name, implementation, reference, tree):
                problems.append(Problem(f"{name}.{kind}.{implementation}.{key}.name", message))


def with_references(servers: tuple[ServerConfig, ...], tree: Mapping[str, Any]) -> tuple[ServerConfig, ...]:
    """The servers with policy_model, where they refer to it, replaced by the server it stands for."""
    return tuple(_with_references(server, tree) for server in servers)


def check_loops(servers: tuple[ServerConfig, ...], settings: GlobalSettings, problems: list[Problem]) -> None:
    """Appends every base_url that is the gateway of this very run."""
    own = {settings.http_host, "127.0.0.1", "localhost", "::1"}
    for server in servers:
        if isinstance(server.settings, VLLMModelSettings):
            for url in server.settings.base_url:
                if urlsplit(url).hostname in own and _port(url) == settings.http_port:
                    message = f"{url} is this run's own gateway, not an engine"
                    path = f"{server.name}.{server.kind}.{server.implementation}.base_url"
                    problems.append(Problem(path, message))


def _servers(
    name: str, value: Mapping[str, Any], known: Implementations, problems: list[Problem]
) -> Iterator[ServerConfig]:
    parts = _parts(name, value, problems)
    if len(parts) > 1:
        listed = " and ".join(implementation for _, implementation, _ in parts)
        problems.append(Problem(name, f"has {len(parts)} implementations, {listed}: keep one"))
        return
    for kind, implementation, raw in parts:
        path = f"{name}.{kind}.{implementation}"
        try:
            model, app = known.settings(kind, implementation, raw), known.app(kind, implementation, raw)
        except AppError as error:
            problems.append(Problem(path, str(error)))
            continue
        if not isinstance(raw, Mapping):
            problems.append(Problem(path, f"must be a mapping of settings, not {raw!r}"))
        elif (settings := _check(model, raw, path, problems)) is not None:
            yield ServerConfig(name, kind, implementation, settings, app)


def _settings(known: Implementations, kind: str, implementation: str, raw: Any) -> type[Settings] | None:
    try:
        return known.settings(kind, implementation, raw)
    except AppError:
        return None  # reported with the servers


def _parts(name: str, value: Mapping[str, Any], problems: list[Problem]) -> list[tuple[str, str, Any]]:
    if not is_server(value):
        problems.append(Problem(name, f"is neither a server nor a global key{_server_hint(name, value)}"))
        return []
    parts: list[tuple[str, str, Any]] = []
    for kind, implemented in value.items():
        if kind not in KINDS:
            problems.append(Problem(f"{name}.{kind}", f"unknown key{_key_of_server_hint(kind, name, value)}"))
        elif not isinstance(implemented, Mapping) or not implemented:
            known = ", ".join(names_of(kind))
            problems.append(Problem(f"{name}.{kind}", f"must name an implementation ({known})"))
        else:
            parts += [(kind, implementation, raw) for implementation, raw in implemented.items()]
    return parts


def _server_hint(name: str, value: Mapping[str, Any]) -> str:
    for key in value:
        if match := nearest(str(key), KINDS):
            return f": did you mean `{match}` where it says `{key}`?"
    match = nearest(name, GLOBAL_KEYS)
    return f"; did you mean `{match}`?" if match else f": a server has one of {', '.join(KINDS)}"


def _key_of_server_hint(key: str, name: str, value: Mapping[str, Any]) -> str:
    for kind in KINDS:
        inside = value.get(kind)
        for implementation in inside if isinstance(inside, Mapping) else ():
            settings = REGISTRY[kind].get(implementation)
            if settings and key in settings.model_fields:
                return f"; did you mean `{name}.{implementation}.{key}`?"
    return did_you_mean(key, (*KINDS, *implementations()))


def _check(model: type[S], raw: Mapping[str, Any], path: str, problems: list[Problem]) -> S | None:
    found = [*model.further_problems(raw)]
    settings = None
    try:
        settings = model.model_validate(dict(raw))
    except ValidationError as error:
        told = {problem.path for problem in found}
        found += [p for p in (_problem(e, model) for e in error.errors()) if p.path not in told]
    fresh = [Problem(f"{path}.{p.path}" if path else p.path, p.message) for p in found]
    known = [problem.path for problem in problems]
    problems += [problem for problem in fresh if not any(_same_place(problem.path, other) for other in known)]
    return settings if not found else None


def _same_place(path: str, other: str) -> bool:
    """Whether a problem at `path` only follows from the one at `other`: the same key, or something in it."""
    return other == path or other.startswith(f"{path}.")


def _problem(error: Any, model: type[BaseModel]) -> Problem:
    location = [str(part) for part in error["loc"]]
    return Problem(".".join(location), _message(error, model, location))


def _message(error: Any, model: type[BaseModel], location: list[str]) -> str:
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(location[-1], _model_at(model, location[:-1]).model_fields)}"
    if kind == "missing":
        field = _model_at(model, location[:-1]).model_fields.get(location[-1])
        return f"{REQUIRED}: {field.description}" if field and field.description else REQUIRED
    if kind == "value_error":
        return str(error["ctx"]["error"])
    text = _PLAIN_WORDS.get(kind, "").format(**error.get("ctx", {})) or error["msg"].removeprefix("Input ")
    secret = _is_secret(_model_at(model, location[:-1]).model_fields.get(location[-1]))
    shown = isinstance(value, str | int | float | bool | None) and not secret
    return f"{text}, not {value!r}" if shown else text


def _is_secret(field: Any) -> bool:
    return field is not None and "SecretStr" in str(field.annotation)


def _model_at(model: type[BaseModel], location: list[str]) -> type[BaseModel]:
    for part in location:
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            break
        model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation: itself, or that of the items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _all_settings(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    for name, server in tree.items():
        for kind in KINDS if is_server(server) else ():
            inside = server.get(kind)
            for implementation, raw in inside.items() if isinstance(inside, Mapping) else ():
                if isinstance(raw, Mapping):
                    yield name, kind, implementation, raw


def _references(
    model: type[Settings] | None, raw: Mapping[str, Any]
) -> Iterator[tuple[str, ServerReference]]:
    for key, field in model.model_fields.items() if model else ():
        if isinstance(field.annotation, type) and issubclass(field.annotation, ServerReference):
            given = {"name": raw[key]} if isinstance(raw.get(key), str) else raw.get(key)
            try:
                yield key, field.annotation.model_validate(given)
            except ValidationError:
                continue  # reported with the other keys


def _with_references(server: ServerConfig, tree: Mapping[str, Any]) -> ServerConfig:
    changed = {
        key: reference.model_copy(update={"name": meant_by(reference.name, tree)})
        for key, reference in server.settings
        if isinstance(reference, ServerReference)
    }
    return replace(server, settings=server.settings.model_copy(update=changed))


def _reference_problem(
    server: str, implementation: str, reference: ServerReference, tree: Mapping[str, Any]
) -> str | None:
    name = meant_by(reference.name, tree)
    servers = [key for key, value in tree.items() if is_server(value) and key != server]
    if name not in servers:
        if name == POLICY_MODEL:
            return _no_policy_model(tree)
        return f"there is no server `{name}`{did_you_mean(name, servers)}"
    if reference.type not in tree[name]:
        return f"`{name}` is one of {', '.join(tree[name])}, not of {reference.type}"
    if implementation == PROXY and "local_vllm_model" not in tree[name][MODELS]:
        return f"`{name}` is no local_vllm_model: a proxy shares the engine of one"
    return None


def _no_policy_model(tree: Mapping[str, Any]) -> str:
    candidates = policy_models(tree)
    if not candidates:
        return "there is no model server: add a model's config to config_paths"
    return f"`{POLICY_MODEL}` could be any of {', '.join(candidates)}: name one"


def _port(url: str) -> int | None:
    parts = urlsplit(url)
    try:
        return parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
