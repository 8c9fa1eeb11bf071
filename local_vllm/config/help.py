"""The reference of every key as text, made of the descriptions in the schema, for `--help`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Set
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from local_vllm.config.schema import REGISTRY, ChatSettings, DescribedNodes, GlobalSettings, Settings

WIDTH = 110
_INDENT = 26


def global_keys_help() -> str:
    """The keys that stand at the top level, and what they do."""
    nodes = ("", "Keys of a node in +cluster=[{gpus:8,count:2}]:", *_model_lines(DescribedNodes))
    return "\n".join(("Global keys, as +key=value:", *_model_lines(GlobalSettings), *nodes, ""))


def server_keys_help() -> str:
    """The keys of each implementation of a server."""
    models = [model for known in REGISTRY.values() for model in known.values()]
    shared = "\n".join(("vllm_model, local_vllm_model, local_vllm_model_proxy:", *_model_lines(ChatSettings)))
    sections = (
        shared,
        *("\n".join((_title(model), *_model_lines(model, _inherited(model)))) for model in models),
    )
    heading = "Keys of a server, as +<server>.<implementation>.<key>=value or in a config file:"
    return "\n\n".join((heading, *sections))


def _title(model: type[Settings]) -> str:
    return textwrap.dedent(model.__doc__ or "").strip()


def _inherited(model: type[Settings]) -> Set[str]:
    return ChatSettings.model_fields.keys() if issubclass(model, ChatSettings) else frozenset()


def _model_lines(model: type[BaseModel], but: Set[str] = frozenset(), prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name in but:
            continue
        yield from _field_lines(prefix + name, field)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _model_lines(inner, prefix=f"{prefix}{name}.")


def _field_lines(name: str, field: FieldInfo) -> list[str]:
    text = f"{field.description} {_default(field)}".strip()
    lines = textwrap.wrap(text, WIDTH - _INDENT)
    if len(name) > _INDENT - 4:
        return [f"  {name}", *(" " * _INDENT + line for line in lines)]
    return [f"  {name:<{_INDENT - 2}}{lines[0]}", *(" " * _INDENT + line for line in lines[1:])]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "Required."
    value: Any = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        value = ",".join(value)
    if value in (None, "", {}):
        return ""
    return f"[{str(value).lower() if isinstance(value, bool) else value}]"
