"""The Hub: how it is reached, which files a model has there, and which of them lie in the cache. Fetching is fetch.py's."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, get_session, get_token, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers

from local_vllm.config.nearest import nearest
from local_vllm.engine import hub_errors
from local_vllm.engine.hub_errors import Asked
from local_vllm.engine.snapshot import HubFile, Snapshot, WantedModel, repository_folder
from local_vllm.engine.wanted_files import index_name, indexed_files, is_weights, wanted_files
from local_vllm.errors import EngineStartError

DEFAULT_ENDPOINT = "https://huggingface.co"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ASK_TIMEOUT_S = 30.0
_HINT_TIMEOUT_S = 5.0
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for a Hub that does not answer well.

    Attributes:
        unreachable_s: pauses before it is tried again when no answer comes at first contact.
        busy_s: the same when it answers 429 or 5xx.
        lost_s: the same when a connection is lost in the middle, anew after each byte; the last one repeats.
        no_progress_s: without a single byte for so long, fetching is given up.
    """

    unreachable_s: tuple[float, ...] = (1, 2)
    busy_s: tuple[float, ...] = (1, 2, 4, 8, 15, 30)
    lost_s: tuple[float, ...] = (0.5, 1, 2, 4, 8, 15, 30)
    no_progress_s: float = 300.0


@dataclass(frozen=True, slots=True)
class HubAccess:
    """Where the Hub is and who asks. Without a token, one saved here by `hf auth login` is used."""

    endpoint: str = DEFAULT_ENDPOINT
    token: str | None = field(default=None, repr=False)
    offline: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str], token: str | None) -> HubAccess:
        endpoint = environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
        offline = environment.get("HF_HUB_OFFLINE") or environment.get("TRANSFORMERS_OFFLINE") or ""
        return cls(endpoint.rstrip("/"), token or None, offline.upper() in ("1", "ON", "YES", "TRUE"))

    @property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=self.token)

    def asked(self, wanted: WantedModel, cache: Path) -> Asked:
        has_token = bool(self.token or get_token())
        return Asked(wanted.model, cache, self.endpoint, wanted.revision, has_token)


def find_snapshot(
    wanted: WantedModel, cache: Path, access: HubAccess, patience: Patience = Patience()
) -> Snapshot:
    """What is to be loaded: as the Hub says, or as the cache has it when the Hub must not or cannot be asked.

    Raises:
        EngineStartError: neither has it; the message says why and what to change.
    """
    asked = access.asked(wanted, cache)
    if access.offline:
        if cached := cached_snapshot(wanted, cache):
            return cached
        raise EngineStartError(hub_errors.not_cached(asked))
    try:
        return patiently(lambda: _snapshot_on_hub(wanted, cache, access), patience)
    except EngineStartError:
        raise
    except Exception as error:
        if cached := cached_snapshot(wanted, cache):
            return replace(cached, notice=hub_errors.explain(error, asked))
        if isinstance(hub_errors.origin(error), RepositoryNotFoundError):
            asked = replace(asked, alike=_alike(wanted.model, access))
        raise EngineStartError(hub_errors.explain(error, asked)) from error


def patiently(ask: Callable[[], _Answer], patience: Patience) -> _Answer:
    """`ask` until it answers, with pauses, as long as trying again can help."""
    pauses = {True: iter(patience.busy_s), False: iter(patience.unreachable_s)}
    while True:
        try:
            return ask()
        except Exception as error:
            busy = hub_errors.is_busy(error)
            pause = next(pauses[busy], None) if busy or hub_errors.is_unreachable(error) else None
            if pause is None:
                raise
            time.sleep(max(pause, min(hub_errors.retry_after_s(error), patience.busy_s[-1])))


def _snapshot_on_hub(wanted: WantedModel, cache: Path, access: HubAccess) -> Snapshot:
    info = access.api.model_info(
        wanted.model, revision=wanted.revision or None, files_metadata=True, timeout=_ASK_TIMEOUT_S
    )
    files = {sibling.rfilename: _hub_file(sibling) for sibling in info.siblings or ()}
    indexed: frozenset[str] = frozenset()
    if index := index_name(files, wanted.load_format):
        reached = {"endpoint": access.endpoint, "token": access.token}
        path = hf_hub_download(wanted.model, index, revision=info.sha, cache_dir=cache, **reached)
        indexed = indexed_files(Path(path).read_text())
    names = wanted_files(files, wanted.load_format, indexed)
    if wanted.load_format != "dummy" and not any(is_weights(name) for name in names):
        others = [name for name in files if files[name].size > 2**20]
        raise EngineStartError(hub_errors.no_weights(access.asked(wanted, cache), wanted.load_format, others))
    return Snapshot(wanted, info.sha, tuple(files[name] for name in names))


def _hub_file(sibling) -> HubFile:
    if sibling.lfs is not None:
        return HubFile(sibling.rfilename, sibling.lfs.size or sibling.size or 0, sibling.lfs.sha256 or "")
    return HubFile(sibling.rfilename, sibling.size or 0, sibling.blob_id or "")


def cached_snapshot(wanted: WantedModel, cache: Path) -> Snapshot | None:
    """The snapshot in the cache, if what vLLM loads of it is whole. Asks nobody."""
    repository = repository_folder(cache, wanted.model)
    revision = wanted.revision or "main"
    commit = revision if _COMMIT.fullmatch(revision) else _read(repository / "refs" / revision)
    folder = repository / "snapshots" / commit
    if not commit or not folder.is_dir():
        return None
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    index = index_name(sizes, wanted.load_format)
    indexed = indexed_files((folder / index).read_text()) if index else frozenset()
    names = wanted_files(sizes, wanted.load_format, indexed)
    needs_weights = wanted.load_format != "dummy"
    if needs_weights and not (indexed <= set(names) and any(is_weights(name) for name in names)):
        return None
    return Snapshot(wanted, commit, tuple(HubFile(name, sizes[name]) for name in names))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _alike(model: str, access: HubAccess) -> tuple[str, ...]:
    """The model whose name is most like this one, of the same owner first; none if the Hub does not say."""
    owner, _, name = model.rpartition("/")
    questions = ({"author": owner, "limit": 500},) if owner else ()
    for question in (*questions, {"search": name, "limit": 100}):
        try:
            answer = get_session().get(
                f"{access.endpoint}/api/models",
                params=question,
                headers=build_hf_headers(token=access.token),
                timeout=_HINT_TIMEOUT_S,
            )
            if found := nearest(model, [entry["id"] for entry in answer.json()]):
                return (found,)
        except Exception:  # noqa: BLE001 (a hint for a message that is told in any case)
            return ()
    return ()
