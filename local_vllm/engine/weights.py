"""A model's files on one node: found, built, or fetched. Which nodes need them is weights_on_nodes.py's."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from local_vllm.engine.spec import DEFAULT_MODEL, Download
from local_vllm.errors import EngineStartError

if TYPE_CHECKING:
    from local_vllm.engine.snapshot import Snapshot, WantedModel

# A shared file system may hide so long what another node has written: NFS remembers what was not there.
VISIBLE_WITHIN_S = 90.0
LOOK_AGAIN_S = 0.5
_PROBES = ".local_vllm-probe-"
_OLD_PROBE_S = 3600.0


class NodeWeights:
    """What is asked of each node, in a process of its own, which can be killed in the middle of a download.

    huggingface_hub reads its variables when it is imported: that is done later, where it is used.

    Args:
        variables: the variables by which the Hub is reached; those of the node hold where they say nothing.
        token: for the Hub; None: one saved on the node, if any.
        hf_home: the Hugging Face cache; the models lie in its `hub`.
    """

    def __init__(self, variables: Mapping[str, str], token: str | None, hf_home: Path) -> None:
        os.environ.update(variables)
        os.environ.setdefault("HF_XET_CACHE", str(hf_home / "xet"))
        self.cache = hf_home / "hub"
        self._token = token
        self._probe: Path | None = None

    def local_folder(self, model: str) -> str | None:
        """The folder that `model` names on this node, if it does."""
        return local_folder(model)

    def default_model_folder(self) -> str:
        """Where the default model belongs on this node."""
        return str(default_model_folder())

    def build_default_model(self, folder: str) -> None:
        """Make `folder` hold the default model. Raises EngineStartError: it cannot be written."""
        provide_default_model(folder)

    def find(self, wanted: WantedModel) -> Snapshot:
        """What is to be loaded of a model. Raises EngineStartError: there is no such thing."""
        from local_vllm.engine.hub import find_snapshot

        return find_snapshot(wanted, self.cache, self._access())

    def lacks(self, snapshot: Snapshot) -> bool:
        """Whether files of it are not in the cache here."""
        return bool(snapshot.missing(self.cache))

    def fetch(self, snapshot: Snapshot) -> Iterator[Download]:
        """Fetch it, telling how far it is. Raises EngineStartError: it cannot be had."""
        from local_vllm.engine.fetch import Fetch

        yield from Fetch(snapshot, self.cache, self._access()).progress()

    def sees(self, files: Sequence[str], within_s: float = VISIBLE_WITHIN_S) -> list[str]:
        """Wait until all `files` show up here; returns those that do not."""
        deadline = time.monotonic() + within_s
        while (missing := [file for file in files if not _is_there(file)]) and time.monotonic() < deadline:
            time.sleep(LOOK_AGAIN_S)
        return missing

    def leave_probe(self, folder: str) -> str:
        """Leave a small file in `folder`, by which other nodes see whether they share it; returns its path.

        Raises EngineStartError: the folder cannot be written.
        """
        probe = Path(folder) / f"{_PROBES}{secrets.token_hex(8)}"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            _drop_old_probes(probe.parent)
            probe.touch()
        except OSError as error:
            raise EngineStartError(
                f"the cache {folder} cannot be written: {error.strerror or error}; change its owner or mode, "
                "make room, or set hf_home to another folder"
            ) from error
        self._probe = probe
        return str(probe)

    def take_probe(self) -> None:
        """Remove the probe again."""
        if self._probe is not None:
            self._probe.unlink(missing_ok=True)

    def _access(self):
        from local_vllm.engine.hub import HubAccess

        return HubAccess.of(os.environ, self._token)


def local_folder(model: str) -> str | None:
    """The absolute path of the folder that `model` names on this machine; None if it names none."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else None


def default_model_folder() -> Path:
    """Where the default model is built on this machine: below the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "local_vllm" / DEFAULT_MODEL


def provide_default_model(folder: str) -> None:
    """Make `folder` hold the default model; at once if it does.

    Raises EngineStartError: it cannot be written.
    """
    from local_vllm.cpu.default_model import build_default_model

    try:
        build_default_model(Path(folder))
    except OSError as error:
        raise EngineStartError(
            f"the default model cannot be built in {folder}: {error.strerror or error}; make room there, "
            "or set XDG_CACHE_HOME to a folder that can be written"
        ) from error


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


def _is_there(file: str) -> bool:
    try:
        os.stat(file)
    except OSError:
        return False
    return True


def _drop_old_probes(folder: Path) -> None:
    """Remove what runs left that were killed."""
    for probe in folder.glob(f"{_PROBES}*"):
        if time.time() - probe.stat().st_mtime > _OLD_PROBE_S:
            probe.unlink(missing_ok=True)
