"""A model's files on every node of an engine before it starts, once for each file system that nodes share.

The work on a node is weights.py's, in a process there (node_processes.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from local_vllm.config.vllm_serve_flags import snake_case
from local_vllm.engine.node_processes import NodeProcess, node_processes, of_each
from local_vllm.engine.snapshot import Snapshot, WantedModel, is_hub_id
from local_vllm.engine.spec import DEFAULT_MODEL, Download, EngineSpec
from local_vllm.engine.weights import default_model_folder, local_folder, provide_default_model
from local_vllm.errors import EngineStartError

Tell = Callable[[str, Download | None], Awaitable[None]]

TELL_EVERY_S = 0.5
FOUND_WITHIN_S = 60.0
BUILDING = "building the default model"
# What a model is wanted for: the model itself, or the flag that names it.
MODEL, TOKENIZER, DRAFT = "model", "tokenizer", "speculative_config"
# Ways to guess ahead without a model: vLLM takes these words in the model's place.
_NO_DRAFT_MODELS = ("ngram", "[ngram]", "suffix")


async def provide_weights(spec: EngineSpec, tell: Tell) -> tuple[str, EngineSpec]:
    """Have the files of the engine's models on all its nodes. Called on the node of its rank 0.

    vLLM is handed folders: by a Hub id it asks the Hub again for what it has, and fails when nobody answers.

    Args:
        tell: called with what is being done, and how far it is.

    Returns:
        The model's folder, the same on each node, and the spec with folders where flags name other models.

    Raises:
        EngineStartError: the files cannot be had; the message says where, why and what to change.
    """
    folders = await _folders_here(spec, tell)
    if folders is None:
        async with node_processes(spec) as hosts:
            folders = {
                role: await _provide(wanted, hosts, spec.hf_home / "hub", tell)
                for role, wanted in wanted_models(spec).items()
            }
    return folders[MODEL], with_folders(spec, folders)


async def _folders_here(spec: EngineSpec, tell: Tell) -> dict[str, str] | None:
    """The folders where this node is the only one and has them all: no process has to be started for that.

    With a disk that does not answer it is left to such a process, which can be killed.
    """
    if len(spec.placement.gpus_by_node) > 1:
        return None
    folders: dict[str, str] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(FOUND_WITHIN_S):
            for role, wanted in wanted_models(spec).items():
                if wanted.model == DEFAULT_MODEL:
                    await tell(BUILDING, None)
                    folder = str(default_model_folder())
                    await asyncio.to_thread(provide_default_model, folder)
                elif (folder := await asyncio.to_thread(local_folder, wanted.model)) is None:
                    return None
                folders[role] = folder
            return folders
    return None


def wanted_models(spec: EngineSpec) -> dict[str, WantedModel]:
    """The model, and the tokenizer and the draft model where the flags name others."""
    flags = {snake_case(name): value for name, value in spec.vllm_serve_kwargs.items()}
    load_format, revision = str(flags.get("load_format") or "auto"), str(flags.get("revision") or "")
    models = {MODEL: WantedModel(spec.model, revision, load_format)}
    if (tokenizer := str(flags.get(TOKENIZER) or spec.model)) != spec.model:
        models[TOKENIZER] = WantedModel(tokenizer, str(flags.get("tokenizer_revision") or ""), "dummy")
    draft = _mapping(flags.get(DRAFT))
    if (name := str(draft.get("model") or "")) and name not in (*_NO_DRAFT_MODELS, spec.model):
        models[DRAFT] = WantedModel(name, str(draft.get("revision") or ""), load_format)
    return models


def with_folders(spec: EngineSpec, folders: Mapping[str, str]) -> EngineSpec:
    """The spec, its flags naming `folders` in place of a tokenizer's and a draft model's Hub ids."""

    def at_folder(name: str, value: object) -> object:
        folder = folders.get(snake_case(name))
        if folder is None:
            return value
        return folder if snake_case(name) == TOKENIZER else {**_mapping(value), "model": folder}

    flags = {name: at_folder(name, value) for name, value in spec.vllm_serve_kwargs.items()}
    return replace(spec, vllm_serve_kwargs=flags)


def _mapping(flag: object) -> Mapping[str, Any]:
    if isinstance(flag, str):
        with suppress(ValueError):
            flag = json.loads(flag)
    return flag if isinstance(flag, Mapping) else {}


async def _provide(wanted: WantedModel, hosts: Sequence[NodeProcess], cache: Path, tell: Tell) -> str:
    if wanted.model == DEFAULT_MODEL:
        return await _build_default_model(hosts, tell)
    folders = await of_each(hosts, lambda host: host.ask("local_folder", wanted.model))
    if any(folders):
        return _same_folder(wanted.model, hosts, folders)
    if not is_hub_id(wanted.model):
        raise EngineStartError(
            f"`{wanted.model}` is no folder on {_names(hosts)}, and no Hub id: write the path of a folder "
            "that is there, or ORGANIZATION/NAME"
        )
    return await _provide_from_hub(wanted, hosts, cache, tell)


async def _build_default_model(hosts: Sequence[NodeProcess], tell: Tell) -> str:
    await tell(BUILDING, None)
    folder = await hosts[0].ask("default_model_folder")
    groups = await _sharing(hosts, str(Path(folder).parent))
    await of_each([group[0] for group in groups], lambda host: host.ask("build_default_model", folder))
    await _until_seen(groups, [f"{folder}/config.json"])
    return folder


def _same_folder(model: str, hosts: Sequence[NodeProcess], folders: Sequence[str | None]) -> str:
    if lacking := [host for host, folder in zip(hosts, folders, strict=True) if folder is None]:
        raise EngineStartError(
            f"the folder {model} is not there on {_names(lacking)}: put it there, or on a file system that "
            "all nodes of the engine share, or give a Hub id"
        )
    if len(set(folders)) > 1:
        where = ", ".join(f"{folder} on {host.address}" for host, folder in zip(hosts, folders, strict=True))
        raise EngineStartError(f"the folder {model} must be the same path on all nodes; it is {where}")
    return str(folders[0])


async def _provide_from_hub(
    wanted: WantedModel, hosts: Sequence[NodeProcess], cache: Path, tell: Tell
) -> str:
    await tell(f"looking for {wanted.model}", None)
    snapshot: Snapshot = await hosts[0].ask("find", wanted)
    if snapshot.notice:
        await tell(f"using what is cached: {snapshot.notice}", None)
    folder = snapshot.folder(cache)
    lacks = await of_each(hosts, lambda host: host.ask("lacks", snapshot))
    if lacking := [host for host, lack in zip(hosts, lacks, strict=True) if lack]:
        groups = await _sharing(lacking, str(cache))
        await _fetch([group[0] for group in groups], snapshot, tell)
        await _until_seen(groups, [str(folder / file.path) for file in snapshot.files])
    return str(folder)


async def _fetch(hosts: Sequence[NodeProcess], snapshot: Snapshot, tell: Tell) -> None:
    """Fetch on all `hosts` at a time; the progress told is that of all."""
    doing = f"fetching {snapshot.wanted.model}" + ("" if len(hosts) == 1 else f" on {len(hosts)} nodes")
    latest: dict[str, Download] = {}

    async def follow(host: NodeProcess) -> None:
        async for download in host.follow("fetch", snapshot):
            latest[host.address] = download

    following = asyncio.ensure_future(of_each(hosts, follow))
    try:
        while not (await asyncio.wait([following], timeout=TELL_EVERY_S))[0]:
            await tell(doing, total_of(list(latest.values())))
        await following
        await tell(doing, total_of(list(latest.values())))
    finally:
        following.cancel()


def total_of(downloads: Sequence[Download]) -> Download | None:
    """Several downloads side by side as one."""
    if not downloads:
        return None
    return Download(
        files_done=sum(download.files_done for download in downloads),
        files_total=sum(download.files_total for download in downloads),
        bytes_done=sum(download.bytes_done for download in downloads),
        bytes_total=sum(download.bytes_total for download in downloads),
        bytes_per_s=sum(download.bytes_per_s for download in downloads),
    )


async def _sharing(hosts: Sequence[NodeProcess], folder: str) -> list[list[NodeProcess]]:
    """The nodes in groups that share the file system of `folder`: each looks for what the others left."""
    if len(hosts) == 1:
        return [list(hosts)]
    try:
        probes = await of_each(hosts, lambda host: host.ask("leave_probe", folder))
        unseen = await of_each(hosts, lambda host: host.ask("sees", probes, 0.0))
    finally:
        with suppress(EngineStartError):
            await of_each(hosts, lambda host: host.ask("take_probe"))
    seen = [{probes.index(probe) for probe in probes if probe not in missing} for missing in unseen]
    return [[hosts[index] for index in group] for group in groups_by_sight(seen)]


def groups_by_sight(seen: Sequence[set[int]]) -> list[list[int]]:
    """Who shares a disk, when number i sees what those in `seen[i]` have left: seeing one way is enough."""
    groups: list[list[int]] = []
    for index, sight in enumerate(seen):
        for group in groups:
            if sight & set(group) or any(index in seen[member] for member in group):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


async def _until_seen(groups: Sequence[Sequence[NodeProcess]], files: Sequence[str]) -> None:
    """Wait until the nodes that fetched nothing see what the first of their group has."""
    others = [host for group in groups for host in group[1:]]
    for host, missing in zip(
        others, await of_each(others, lambda host: host.ask("sees", files)), strict=True
    ):
        if missing:
            raise EngineStartError(
                f"{missing[0]}, fetched by another node, does not show up on {host.address}, which shares "
                "that folder: see to the mount of the file system there"
            )


def _names(hosts: Sequence[NodeProcess]) -> str:
    return ", ".join(host.address for host in hosts)
