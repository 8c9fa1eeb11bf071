"""Launches the engines of a run, side by side where their plan allows it, and looks whether Ray placed each as planned.

vLLM places its workers on what is free at that moment, so some engines are launched only after others have taken their
GPUs: plan/launches.py says which. When a launch is permitted at all is left to the caller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from local_vllm.cluster.groups import VLLMGroup, vllm_groups
from local_vllm.cluster.nodes import read_cluster
from local_vllm.engine.owned import OwnedEngine
from local_vllm.engine.spec import EngineState
from local_vllm.engine.whose_groups import WhoseGroups, gpus_by_node
from local_vllm.plan.launches import launched_after

# From the start of `vllm serve` until it has its GPUs: it imports, reads the model's configuration, and asks Ray.
PLACED_WITHIN_S = 300.0
LOOK_AGAIN_S = 0.25


class Permission(Protocol):
    """Checked before each launch; raises when it has run out."""

    async def check(self) -> None: ...


async def launch_engines(
    engines: Sequence[OwnedEngine], permitted: Callable[[], AbstractAsyncContextManager[Permission | None]]
) -> None:
    """Prepare all engines side by side, then launch each as soon as those that it waits for are placed.

    Never raises: what goes wrong becomes the status of the engines that it concerns.
    """
    try:
        prepared = await asyncio.gather(*(engine.prepare() for engine in engines))
        if not all(prepared):
            return
        async with permitted() as permission:
            await _launch_each(engines, permission)
    except Exception as error:  # noqa: BLE001 (nobody waits for this task: the engines tell)
        for engine in engines:
            if engine.status.state.is_coming_up and not engine.is_placed:
                await engine.fail(f"it could not be launched: {error}")


async def _launch_each(engines: Sequence[OwnedEngine], permission: Permission | None) -> None:
    placements = [engine.spec.placement for engine in engines]
    after, whose = launched_after(placements), WhoseGroups()
    launches: dict[int, asyncio.Task[None]] = {}

    async def launch(engine: OwnedEngine, before: Sequence[asyncio.Task[None]]) -> None:
        await asyncio.gather(*before)
        if permission is not None:
            await permission.check()
        await _launch(engine, whose, alone=permission is None)

    try:
        for index in sorted(range(len(engines)), key=lambda index: placements[index].launch_order):
            before = [launches[other] for other in after[index]]
            launches[index] = asyncio.create_task(launch(engines[index], before))
        await asyncio.gather(*launches.values())
    finally:
        for task in launches.values():
            task.cancel()
        await asyncio.gather(*launches.values(), return_exceptions=True)


async def launch_engine(engine: OwnedEngine, *, alone: bool) -> None:
    """Launch one that has been prepared, and see it placed: what goes wrong becomes its status.

    `alone`: no engine but those of this run starts on the cluster. Otherwise a new group may be another's, which tells
    nothing of this one until it has come up, or should have.
    """
    await _launch(engine, WhoseGroups(), alone=alone)


async def _launch(engine: OwnedEngine, whose: WhoseGroups, *, alone: bool) -> None:
    whose.waiting.append(engine.spec.placement)
    try:
        before = await asyncio.to_thread(vllm_groups)
        await engine.launch()
        await _see_placed(engine, whose, before, alone=alone)
    finally:
        whose.waiting.remove(engine.spec.placement)


async def _see_placed(engine: OwnedEngine, whose: WhoseGroups, before: Container[str], *, alone: bool) -> None:
    """`before`: the ids of groups that were there before the launch."""
    placement = engine.spec.placement
    deadline = time.monotonic() + PLACED_WITHIN_S
    while (state := engine.status.state).is_coming_up or state is EngineState.HEALTHY:
        groups = [group for name, group in (await asyncio.to_thread(vllm_groups)).items() if name not in before]
        jobs = whose.jobs(placement, groups)
        if whose.find(placement, jobs):
            engine.is_placed = True
            return
        late = time.monotonic() > deadline
        if elsewhere := whose.elsewhere(placement, jobs):
            if alone or late or state is EngineState.HEALTHY:
                return await engine.fail(await _misplaced(engine, elsewhere))
        elif state is EngineState.HEALTHY:
            return
        elif late:
            return await engine.fail(_not_placed(engine, jobs[0] if jobs else ()))
        await asyncio.sleep(LOOK_AGAIN_S)


async def _misplaced(engine: OwnedEngine, placed: Mapping[str, int]) -> str:
    planned = engine.spec.placement.gpus_by_node
    addresses = {node.node_id: node.address for node in (await asyncio.to_thread(read_cluster)).nodes}
    return (
        f"planned on {_in_words(planned, addresses)}, but Ray placed it on {_in_words(placed, addresses)}: "
        "something else took GPUs meanwhile; start it again"
    )


def _in_words(gpus_by_node: Mapping[str, int], addresses: Mapping[str, str]) -> str:
    named = {addresses.get(node_id, node_id): gpus for node_id, gpus in gpus_by_node.items()}
    return ", ".join(f"{address} ({gpus} GPU{'s' * (gpus > 1)})" for address, gpus in sorted(named.items()))


def _not_placed(engine: OwnedEngine, groups: Sequence[VLLMGroup]) -> str:
    asked = sum(group.gpus for group in groups)
    waiting = asked - sum(gpus_by_node(groups).values())
    what = f"Ray has found no room for {waiting} of the {asked} GPUs that vLLM asked for" if asked else (
        "vLLM has not asked Ray for GPUs"
    )
    return f"{what} within {PLACED_WITHIN_S:.0f} s; see {engine.spec.log_path}"
