"""A model's files on every node of an engine before it starts, once for each file system that the nodes share.

The work on a node is weights.py's, in a Ray actor there that ends with whoever asked for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from local_vllm.config.vllm_serve_flags import snake_case
from local_vllm.engine.hub import Snapshot, WantedModel, is_hub_id
from local_vllm.engine.hub_variables import hub_variables
from local_vllm.engine.spec import DEFAULT_MODEL, Download, EngineSpec
from local_vllm.engine.weights import NodeWeights
from local_vllm.errors import EngineStartError

Tell = Callable[[str, Download | None], Awaitable[None]]

TELL_EVERY_S = 0.5
# Whatever is asked of a node but fetching: the Hub may be asked again several times for it.
ANSWER_WITHIN_S = 600.0
# Fetching tells how far it is twice a second, and notices by itself when nothing comes.
SILENCE_S = 60.0
# What a model is wanted for: the model itself, or the flag that names it.
MODEL, TOKENIZER, DRAFT = "model", "tokenizer", "speculative_config"
# Ways to guess ahead without a model: vLLM takes these words in the model's place.
_NO_DRAFT_MODELS = ("ngram", "[ngram]", "suffix")


async def provide_weights(spec: EngineSpec, tell: Tell) -> tuple[str, EngineSpec]:
    """Have the files of the engine's models on all its nodes.

    vLLM is handed folders: by a Hub id it asks the Hub again for what it has, and does not start when nobody answers.

    Args:
        tell: called with what is being done, and how far it is.

    Returns:
        The folder of the model, the same on each node, and the spec with folders where its flags name other models.

    Raises:
        EngineStartError: the files cannot be had; the message says where, why and what to change.
    """
    async with _hosts(spec) as hosts:
        folders = {
            role: await _provide(wanted, hosts, spec.hf_home / "hub", tell)
            for role, wanted in wanted_models(spec).items()
        }
        return folders[MODEL], with_folders(spec, folders)


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


@dataclass(frozen=True, slots=True)
class Host:
    """The process on one node. `alone` is whether it is the only one, so that its address needs no mention."""

    address: str
    actor: ActorHandle
    alone: bool

    async def ask(self, method: str, *arguments: object) -> Any:
        """The answer of a method of NodeWeights. Raises EngineStartError: as that does, or no answer came."""
        async with self._explained(f"did not answer within {ANSWER_WITHIN_S:.0f} s", ANSWER_WITHIN_S):
            return await getattr(self.actor, method).remote(*arguments)

    async def follow(self, method: str, *arguments: object) -> AsyncIterator[Any]:
        """The answers of a method that gives many."""
        answers = getattr(self.actor, method).options(num_returns="streaming").remote(*arguments)
        while True:
            async with self._explained(f"has been silent for {SILENCE_S:.0f} s", SILENCE_S):
                try:
                    answer = await (await anext(answers))
                except StopAsyncIteration:
                    return
            yield answer

    @asynccontextmanager
    async def _explained(self, late: str, within_s: float) -> AsyncIterator[None]:
        doing = f"the process that provides weights on {self.address}"
        try:
            async with asyncio.timeout(within_s):
                yield
        except TimeoutError:
            raise EngineStartError(f"{doing} {late}: see whether its disk answers") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EngineStartError):
                raise EngineStartError(f"{'' if self.alone else f'on {self.address}: '}{error.cause}") from None
            raise
        except ray.exceptions.RayError as error:
            raise EngineStartError(f"{doing} is gone ({type(error).__name__}): start the run again") from error


@asynccontextmanager
async def _hosts(spec: EngineSpec) -> AsyncIterator[list[Host]]:
    """A process on each node of the engine, rank 0's first. They end with the block, and with this process."""
    nodes = {slot.node_id: slot.address for rank in spec.placement.ranks for slot in rank.slots}
    variables = dict(spec.hub_variables) | hub_variables(spec.vllm_serve_env_vars)
    token = spec.vllm_serve_env_vars.get("HF_TOKEN") or spec.hf_token
    hosts: list[Host] = []
    try:
        for node_id, address in nodes.items():
            pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
            actor = ray.remote(NodeWeights).options(num_cpus=0, scheduling_strategy=pinned)
            hosts.append(Host(address, actor.remote(variables, token, spec.hf_home), len(nodes) == 1))
        yield hosts
    finally:
        for host in hosts:
            ray.kill(host.actor)


async def _provide(wanted: WantedModel, hosts: Sequence[Host], cache: Path, tell: Tell) -> str:
    if wanted.model == DEFAULT_MODEL:
        return await _build_default_model(hosts, tell)
    folders = await _of_each(hosts, lambda host: host.ask("local_folder", wanted.model))
    if any(folders):
        return _same_folder(wanted.model, hosts, folders)
    if not is_hub_id(wanted.model):
        raise EngineStartError(
            f"`{wanted.model}` is no folder on {_names(hosts)}, and no Hub id: write the path of a folder that is "
            "there, or ORGANIZATION/NAME"
        )
    return await _provide_from_hub(wanted, hosts, cache, tell)


async def _build_default_model(hosts: Sequence[Host], tell: Tell) -> str:
    await tell("building the default model", None)
    folder = await hosts[0].ask("default_model_folder")
    groups = await _sharing(hosts, str(Path(folder).parent))
    await _of_each([group[0] for group in groups], lambda host: host.ask("build_default_model", folder))
    await _until_seen(groups, [f"{folder}/config.json"])
    return folder


def _same_folder(model: str, hosts: Sequence[Host], folders: Sequence[str | None]) -> str:
    if lacking := [host for host, folder in zip(hosts, folders, strict=True) if folder is None]:
        raise EngineStartError(
            f"the folder {model} is not there on {_names(lacking)}: put it there, or on a file system that all nodes "
            "of the engine share, or give a Hub id"
        )
    if len(set(folders)) > 1:
        where = ", ".join(f"{folder} on {host.address}" for host, folder in zip(hosts, folders, strict=True))
        raise EngineStartError(f"the folder {model} must be the same path on all nodes; it is {where}")
    return str(folders[0])


async def _provide_from_hub(wanted: WantedModel, hosts: Sequence[Host], cache: Path, tell: Tell) -> str:
    await tell(f"looking for {wanted.model}", None)
    snapshot: Snapshot = await hosts[0].ask("find", wanted)
    if snapshot.notice:
        await tell(f"using what is cached: {snapshot.notice}", None)
    folder = snapshot.folder(cache)
    lacks = await _of_each(hosts, lambda host: host.ask("lacks", snapshot))
    if lacking := [host for host, lack in zip(hosts, lacks, strict=True) if lack]:
        groups = await _sharing(lacking, str(cache))
        await _fetch([group[0] for group in groups], snapshot, tell)
        await _until_seen(groups, [str(folder / file.path) for file in snapshot.files])
    return str(folder)


async def _fetch(hosts: Sequence[Host], snapshot: Snapshot, tell: Tell) -> None:
    """Fetch on all `hosts` at a time; the progress told is that of all."""
    doing = f"fetching {snapshot.wanted.model}" + ("" if len(hosts) == 1 else f" on {len(hosts)} nodes")
    latest: dict[str, Download] = {}

    async def follow(host: Host) -> None:
        async for download in host.follow("fetch", snapshot):
            latest[host.address] = download

    following = asyncio.ensure_future(_of_each(hosts, follow))
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


async def _sharing(hosts: Sequence[Host], folder: str) -> list[list[Host]]:
    """The nodes in groups that share the file system of `folder`: each looks for the file that each other left."""
    if len(hosts) == 1:
        return [list(hosts)]
    try:
        probes = await _of_each(hosts, lambda host: host.ask("leave_probe", folder))
        unseen = await _of_each(hosts, lambda host: host.ask("sees", probes, 0.0))
    finally:
        with suppress(EngineStartError):
            await _of_each(hosts, lambda host: host.ask("take_probe"))
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


async def _until_seen(groups: Sequence[Sequence[Host]], files: Sequence[str]) -> None:
    """Wait until the nodes that fetched nothing see what the first of their group has."""
    others = [host for group in groups for host in group[1:]]
    for host, missing in zip(others, await _of_each(others, lambda host: host.ask("sees", files)), strict=True):
        if missing:
            raise EngineStartError(
                f"{missing[0]}, fetched by another node, does not show up on {host.address}, which shares that folder: "
                "see to the mount of the file system there"
            )


async def _of_each(hosts: Sequence[Host], ask: Callable[[Host], Awaitable[Any]]) -> list[Any]:
    """`ask` of all hosts at a time; the first error ends the others."""
    tasks = [asyncio.ensure_future(ask(host)) for host in hosts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _names(hosts: Sequence[Host]) -> str:
    return ", ".join(host.address for host in hosts)
