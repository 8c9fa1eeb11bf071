"""Looks at an engine that has come up: its processes on every node, what its metrics tell, tokens that it is asked for.

One look follows the other without waiting for any answer. What is made of them is supervise.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import aiohttp
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from local_vllm.engine.metrics import ranks_seen
from local_vllm.engine.node_watch import NodeWatch
from local_vllm.engine.supervise import Look, RankSeen
from local_vllm.processes.members import Seen

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
ASK_EVERY_S = 2.0
# Long after it has been silent for too long: only then is its connection given up.
ANSWER_WITHIN_S = 600.0
ASK_NODE_EVERY_S = 0.5
# How a canary is asked for again that was refused, because the engine is full say.
ASK_AGAIN_S = 2.0
# The share of a CPU that counts as computing, had or wanted by all processes of the engine over so many seconds. Idle,
# vLLM's have 3 % of one together.
COMPUTES_SHARE = 0.1
COMPUTES_OVER_S = 2.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine is asked, and by which name it knows its model."""

    root_url: str
    api_key: str
    model: str


class FarNode:
    """A node besides the engine's own: an actor of ours looks at the processes there."""

    def __init__(self, node_id: str, address: str, folder: Path) -> None:
        self.address = address
        self.is_lost = False
        self.seen: tuple[Seen, ...] = ()
        self._node_id = node_id
        pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
        self._actor = ray.remote(NodeWatch).options(num_cpus=0, scheduling_strategy=pinned).remote(folder)

    async def settle(self) -> None:
        await self._actor.settle.remote()

    async def watch(self) -> None:
        """Look until the node is lost. An actor that died on a node that lives says nothing of the engine."""
        while not self.is_lost:
            try:
                self.seen = await self._actor.look.remote()
            except ray.exceptions.RayError as error:
                if await asyncio.to_thread(self._is_dead):
                    self.is_lost = True
                elif not isinstance(error, ray.exceptions.ActorUnavailableError):
                    logger.warning("%s: its processes are not watched any more: %s", self.address, type(error).__name__)
                    return
            await asyncio.sleep(ASK_NODE_EVERY_S)

    def _is_dead(self) -> bool:
        return not any(node["NodeID"] == self._node_id and node["Alive"] for node in ray.nodes())

    async def end(self) -> None:
        """End the engine's processes there, and the actor."""
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            await asyncio.wait_for(_finished(self._actor.end), 5)
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self._actor)


async def _finished(method) -> None:
    await method.remote()


class Watch:
    """All that is looked at in one engine, from `async with` on. Its `looks` never end by themselves."""

    def __init__(self, engine: Address, here: NodeWatch, far: Sequence[FarNode]) -> None:
        self._engine = engine
        self._here = here
        self._far = far
        self._tasks: list[asyncio.Task[None]] = []
        self._canaries: dict[int, asyncio.Task[None]] = {}
        self._back: set[int] = set()
        self._told: Mapping[int, RankSeen] | None = None
        self._heard = False
        self._asked_at: float | None = None
        self._cpu: dict[int, float] = {}
        self._cpu_since = 0.0
        self._computes = False

    async def __aenter__(self) -> Watch:
        timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S, sock_connect=ANSWER_WITHIN_S)
        key = {"Authorization": f"Bearer {self._engine.api_key}"}
        # A connection of its own for each question: an old one tells of an API server as it was.
        connector = aiohttp.TCPConnector(force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, headers=key, timeout=timeout, trust_env=False)
        self._tasks = [asyncio.create_task(node.watch()) for node in self._far]
        self._tasks.append(asyncio.create_task(self._ask_metrics()))
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        tasks = [*self._tasks, *self._canaries.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    async def looks(self) -> AsyncIterator[Look]:
        """One look after the other, a quarter of a second between them."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = time.monotonic()
            yield self._look(now - before, now)
            before = now

    def _look(self, step_s: float, now: float) -> Look:
        seen = [*self._here.look(), *(each for node in self._far for each in node.seen)]
        look = Look(
            step_s=step_s,
            gone=tuple(str(each.member) for each in seen if each.is_gone),
            stopped=tuple(str(each.member) for each in seen if each.is_stopped),
            lost_nodes=tuple(node.address for node in self._far if node.is_lost),
            ranks=self._told,
            heard=self._heard,
            unheard=self._asked_at is not None and now - self._asked_at > ASK_EVERY_S,
            computes=self._uses_cpu(seen, now),
            canaries_back=frozenset(self._back),
        )
        self._told, self._heard = None, False
        self._back.clear()
        return look

    def _uses_cpu(self, seen: Sequence[Seen], now: float) -> bool:
        if now - self._cpu_since >= COMPUTES_OVER_S:
            used = sum(max(0.0, each.cpu_s - self._cpu.get(each.member.pid, each.cpu_s)) for each in seen)
            self._computes = used >= COMPUTES_SHARE * (now - self._cpu_since)
            self._cpu = {each.member.pid: each.cpu_s for each in seen}
            self._cpu_since = now
        return self._computes

    async def _ask_metrics(self) -> None:
        while True:
            # Since when it owes an answer: one that refuses the connection owes it as well.
            self._asked_at = self._asked_at or time.monotonic()
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                async with self._session.get(f"{self._engine.root_url}/metrics") as answer:
                    self._told = ranks_seen(await answer.text())
                    self._heard = True
                    self._asked_at = None
            await asyncio.sleep(ASK_EVERY_S)

    def send_canary(self, rank: int) -> None:
        """Ask that rank for a token; a later look tells when it came."""
        if rank not in self._canaries or self._canaries[rank].done():
            self._canaries[rank] = asyncio.create_task(self._canary(rank))

    async def _canary(self, rank: int) -> None:
        await answered_token(self._session, self._engine, rank)
        self._heard = True
        self._back.add(rank)


async def answered_token(session: aiohttp.ClientSession, engine: Address, rank: int) -> None:
    """Return once that rank has generated a token. Refusals for now are asked again.

    An engine that has no completions, such as one of a pooling model, says so, and has proven that it hears.
    """
    body = {"model": engine.model, "prompt": [0], "max_tokens": 1, "temperature": 0, "min_tokens": 1}
    headers = {"X-data-parallel-rank": str(rank)}
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.post(f"{engine.root_url}/v1/completions", json=body, headers=headers) as answer:
                await answer.read()
                if answer.status < 500 and answer.status != 429:
                    return
        await asyncio.sleep(ASK_AGAIN_S)
