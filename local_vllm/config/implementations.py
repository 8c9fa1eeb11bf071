"""What each implementation that a configuration names can be told: those of models from the registry, apps from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from local_vllm.config.apps import DEFAULT_ENTRYPOINT, AppError, AppFolders, settings_class, shipped_apps
from local_vllm.config.fields import Settings
from local_vllm.config.nearest import did_you_mean
from local_vllm.config.schema import MODELS, REGISTRY


@dataclass(frozen=True, slots=True)
class Implementations:
    """Those that one configuration can name; `folders` are where its apps are looked for."""

    folders: AppFolders

    def settings(self, kind: str, implementation: str, raw: Any) -> type[Settings]:
        """What `implementation` can be told. Raises AppError when there is none of this name."""
        if kind == MODELS:
            if implementation not in REGISTRY[MODELS]:
                raise AppError(f"unknown implementation{did_you_mean(implementation, REGISTRY[MODELS])}")
            return REGISTRY[MODELS][implementation]
        return settings_class(self._app(kind, implementation, raw), kind)

    def app(self, kind: str, implementation: str, raw: Any) -> str | None:
        """The app's file or module; None for a model server. Raises AppError."""
        return None if kind == MODELS else self._app(kind, implementation, raw)

    def _app(self, kind: str, implementation: str, raw: Any) -> str:
        entrypoint = raw.get("entrypoint") if isinstance(raw, Mapping) else None
        try:
            return self.folders.find(kind, implementation, str(entrypoint or DEFAULT_ENTRYPOINT))
        except AppError as error:
            raise AppError(f"{error}{did_you_mean(implementation, shipped_apps())}") from None


def names_of(kind: str) -> Sequence[str]:
    """The implementations that are shipped of a kind, or that could be of it."""
    return tuple(REGISTRY[MODELS]) if kind == MODELS else shipped_apps()
