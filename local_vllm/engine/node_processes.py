"""A process on each node of an engine, where weights.NodeWeights works: a Ray actor that ends with its owner.

What is asked of them, and in which order, is weights_on_nodes.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from local_vllm.engine.hub_variables import hub_variables
from local_vllm.engine.spec import EngineSpec
from local_vllm.engine.weights import NodeWeights
from local_vllm.errors import EngineStartError

# Whatever is asked of a node but fetching: the Hub may be asked again several times for it.
ANSWER_WITHIN_S = 600.0
# Fetching tells how far it is twice a second, and notices by itself when nothing comes.
SILENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """The process on one node. `alone`: it is the only one, and its address needs no mention."""

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
                raise EngineStartError(
                    f"{'' if self.alone else f'on {self.address}: '}{error.cause}"
                ) from None
            raise
        except ray.exceptions.RayError as error:
            raise EngineStartError(
                f"{doing} is gone ({type(error).__name__}): start the run again"
            ) from error


@asynccontextmanager
async def node_processes(spec: EngineSpec) -> AsyncIterator[list[NodeProcess]]:
    """A process on each node of the engine, rank 0's first. They end with the block, and with this one."""
    nodes = {slot.node_id: slot.address for rank in spec.placement.ranks for slot in rank.slots}
    variables = dict(spec.hub_variables) | hub_variables(spec.vllm_serve_env_vars)
    token = spec.vllm_serve_env_vars.get("HF_TOKEN") or spec.hf_token
    hosts: list[NodeProcess] = []
    try:
        for node_id, address in nodes.items():
            pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
            actor = ray.remote(NodeWeights).options(num_cpus=0, scheduling_strategy=pinned)
            hosts.append(NodeProcess(address, actor.remote(variables, token, spec.hf_home), len(nodes) == 1))
        yield hosts
    finally:
        for host in hosts:
            ray.kill(host.actor)


async def of_each(hosts: Sequence[NodeProcess], ask: Callable[[NodeProcess], Awaitable[Any]]) -> list[Any]:
    """`ask` of all hosts at a time; the first error ends the others."""
    tasks = [asyncio.ensure_future(ask(host)) for host in hosts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
