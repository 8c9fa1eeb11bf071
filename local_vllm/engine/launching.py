"""Launches the engines of a run in the order of their plan, and looks whether Ray placed each as it was planned.

vLLM places its workers on what is free at that moment, so an engine is launched only after the one before it has
taken its GPUs. When a launch is permitted at all is left to the caller.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from local_vllm.cluster.groups import VLLMGroup, vllm_groups
from local_vllm.cluster.nodes import read_cluster
from local_vllm.engine.owned import OwnedEngine
from local_vllm.engine.spec import EngineState
from local_vllm.plan.placement import Placement

# From the start of `vllm serve` until it has its GPUs: it imports, reads the model's configuration, and asks Ray.
PLACED_WITHIN_S = 300.0
LOOK_AGAIN_S = 0.25


class Permission(Protocol):
    """Checked before each launch; raises when it has run out."""

    async def check(self) -> None: ...


async def launch_engines(
    engines: Sequence[OwnedEngine], permitted: Callable[[], AbstractAsyncContextManager[Permission | None]]
) -> None:
    """Prepare all engines side by side, then launch one after the other while `permitted` holds.

    Never raises: what goes wrong becomes the status of the engines that it concerns.
    """
    try:
        prepared = await asyncio.gather(*(engine.prepare() for engine in engines))
        if not all(prepared):
            return
        async with permitted() as permission:
            for engine in sorted(engines, key=lambda engine: engine.spec.placement.launch_order):
                if permission is not None:
                    await permission.check()
                await launch_engine(engine, alone=permission is None)
    except Exception as error:  # noqa: BLE001 (nobody waits for this task: the engines tell)
        for engine in engines:
            if engine.status.state.is_coming_up and not engine.is_placed:
                await engine.fail(f"it could not be launched: {error}")


async def launch_engine(engine: OwnedEngine, *, alone: bool) -> None:
    """Launch one that has been prepared, and see it placed: what goes wrong becomes its status.

    `alone`: no engine but ours starts on the cluster. Otherwise a new group may be another's, which tells nothing of
    this one until it has come up, or should have.
    """
    before = await asyncio.to_thread(vllm_groups)
    await engine.launch()
    deadline = time.monotonic() + PLACED_WITHIN_S
    while (state := engine.status.state).is_coming_up or state is EngineState.HEALTHY:
        groups = [group for name, group in (await asyncio.to_thread(vllm_groups)).items() if name not in before]
        placed = _gpus_by_node(groups)
        if _is_there(engine.spec.placement, groups):
            engine.is_placed = True
            return
        late = time.monotonic() > deadline
        if placed.total() >= engine.spec.placement.topology.gpus:
            if alone or late or state is EngineState.HEALTHY:
                return await engine.fail(await _misplaced(engine, placed))
        elif state is EngineState.HEALTHY:
            return
        elif late:
            return await engine.fail(_not_placed(engine, groups))
        await asyncio.sleep(LOOK_AGAIN_S)


def _is_there(placement: Placement, groups: Sequence[VLLMGroup]) -> bool:
    """Whether the groups, or some of them when others are somebody else's, are those of the placement."""
    if dict(_gpus_by_node(groups)) == placement.gpus_by_node:
        return True
    planned = Counter(frozenset((slot.node_id, slot.gpus) for slot in rank.slots) for rank in placement.ranks)
    return planned <= Counter(frozenset(group.gpus_by_node.items()) for group in groups)


def _gpus_by_node(groups: Sequence[VLLMGroup]) -> Counter[str]:
    gpus: Counter[str] = Counter()
    for group in groups:
        gpus.update(group.gpus_by_node)
    return gpus


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
    waiting = asked - _gpus_by_node(groups).total()
    what = f"Ray has found no room for {waiting} of the {asked} GPUs that vLLM asked for" if asked else (
        "vLLM has not asked Ray for GPUs"
    )
    return f"{what} within {PLACED_WITHIN_S:.0f} s; see {engine.spec.log_path}"
