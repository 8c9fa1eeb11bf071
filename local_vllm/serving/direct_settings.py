"""What the Responses API in an engine's own API server is told: plain values that travel in one environment variable.

They hold no secret. Which of a server's settings they are made of is left to `request_settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import msgspec

from local_vllm.engine.spec import DIRECT_VARIABLE
from local_vllm.errors import ConfigError, Problem
from local_vllm.protocol.settings import ConverterSettings
from local_vllm.serving.client import Timeouts


@dataclass(frozen=True, slots=True)
class Template:
    """The chat template of `tokenizer`; what is fetched from the Hub is looked for in the folder `cache` first."""

    tokenizer: str
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class DirectSettings:
    """Request-time settings of the model server `server`.

    `model` is the engine's name of its model, and `other_names` are those by which a client may mean the same.
    """

    server: str
    model: str
    other_names: tuple[str, ...] = ()
    converter: ConverterSettings = ConverterSettings(stores_responses=False)
    timeouts: Timeouts = Timeouts()
    max_request_mib: int = 64
    audio_root: str | None = None
    template: Template | None = None


def plain(settings: Any) -> dict[str, object]:
    """The fields of a dataclass as JSON values, without those that say what is so without them."""
    said = ((field, getattr(settings, field.name)) for field in fields(settings))
    return {
        field.name: plain(value) if is_dataclass(value) else msgspec.to_builtins(value)
        for field, value in said
        if value != field.default and (value or field.default)
    }


def read_settings(environment: Mapping[str, str]) -> DirectSettings:
    """Raises ConfigError when the variable is not there, or is not what we write."""
    try:
        return msgspec.json.decode(environment.get(DIRECT_VARIABLE, ""), type=DirectSettings)
    except msgspec.DecodeError as error:
        message = f"has to be what local_vllm gives an engine with direct_responses: true ({error})"
        raise ConfigError([Problem(DIRECT_VARIABLE, message)]) from error
