"""A model on the Hub as values: which repository is wanted, and which of its files. Asks nobody, and imports no client.

The layout of the cache is huggingface_hub's documented one: refs, blobs, snapshots.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WantedModel:
    """A repository on the Hub. `revision` empty: the main branch. `load_format`: vLLM's flag."""

    model: str
    revision: str = ""
    load_format: str = "auto"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file. `etag` names its content, as the cache does; empty where the Hub does not tell."""

    path: str
    size: int
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files to load of one commit. `notice` says why it is the cache's word and not the Hub's."""

    wanted: WantedModel
    commit: str
    files: tuple[HubFile, ...]
    notice: str = ""

    def folder(self, cache: Path) -> Path:
        return repository_folder(cache, self.wanted.model) / "snapshots" / self.commit

    def missing(self, cache: Path) -> list[HubFile]:
        """The files that are not in the cache."""
        folder = self.folder(cache)
        return [file for file in self.files if not (folder / file.path).is_file()]


def repository_folder(cache: Path, model: str) -> Path:
    return cache / f"models--{model.replace('/', '--')}"


def is_hub_id(model: str) -> bool:
    """Whether it has the form of a Hub id; whether there is such a model is another question."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model) is not None
