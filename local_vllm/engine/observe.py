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
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from local_vllm.engine.metrics import ranks_seen
from local_vllm.engine.node_watch import NodeWatch
from local_vllm.engine.supervise import PAUSE_TOLD_WITHIN_S, AskPaused, Look, RankSeen, SendCanary
from local_vllm.processes.members import Member, Seen

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
ASK_EVERY_S = 2.0
# Long after it has been silent for too long: only then is its connection given up.
ANSWER_WITHIN_S = 600.0
ASK_NODE_EVERY_S = 0.5
# Nobody answers for a node that is cut off, and Ray takes its time to give it up.
NODE_ANSWERS_WITHIN_S = 10.0
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


def node_watch_on(node_id: str, folder: Path, settled: tuple[Member, ...] = ()) -> ActorHandle:
    """An actor on that node that looks at the processes there."""
    pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(NodeWatch).options(num_cpus=0, scheduling_strategy=pinned).remote(folder, settled)


class FarNode:
    """A node besides the engine's own: an actor of ours looks at the processes there."""

    def __init__(self, node_id: str, address: str, folder: Path) -> None:
        self.address = address
        self.is_lost = False
        self.seen: tuple[Seen, ...] = ()
        self._node_id = node_id
        self._folder = folder
        self._settled: tuple[Member, ...] = ()
        self._actor = node_watch_on(node_id, folder)

    async def settle(self) -> None:
        self._settled = await self._actor.settle.remote()

    async def watch(self) -> None:
        """Look until the node is lost. An actor that died on a node that lives says nothing of the engine: there is
        another one then, for the same processes.
        """
        while not self.is_lost:
            try:
                self.seen = await asyncio.wait_for(_finished(self._actor.look), NODE_ANSWERS_WITHIN_S)
            except (ray.exceptions.RayError, TimeoutError) as error:
                if await asyncio.to_thread(self._is_dead):
                    self.is_lost = True
                elif not isinstance(error, ray.exceptions.ActorUnavailableError | TimeoutError):
                    logger.warning("%s: its processes are watched anew: %s", self.address, type(error).__name__)
                    self._actor = await asyncio.to_thread(node_watch_on, self._node_id, self._folder, self._settled)
            await asyncio.sleep(ASK_NODE_EVERY_S)

    def _is_dead(self) -> bool:
        return not any(node["NodeID"] == self._node_id and node["Alive"] for node in ray.nodes())

    async def end(self) -> None:
        """End the engine's processes there, and the actor."""
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            await asyncio.wait_for(_finished(self._actor.end), 5)
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self._actor)


async def _finished(method):
    return await method.remote()


class Watch:
    """All that is looked at in one engine, from `async with` on. Its `looks` never end by themselves."""

    def __init__(self, engine: Address, here: NodeWatch, far: Sequence[FarNode]) -> None:
        self._engine = engine
        self._here = here
        self._far = far
        self._tasks: list[asyncio.Task[None]] = []
        self._asked: dict[SendCanary | AskPaused, asyncio.Task[None]] = {}
        self._back: set[int] = set()
        self._refused: set[int] = set()
        self._paused = False
        self._told: Mapping[int, RankSeen] | None = None
        self._heard = False
        self._asked_at: float | None = None
        self._cpu: dict[tuple[str, Member], float] = {}
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
        tasks = [*self._tasks, *self._asked.values()]
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
        placed = [("", each) for each in self._here.look()]
        placed += [(node.address, each) for node in self._far for each in node.seen]
        seen = [each for _, each in placed]
        look = Look(
            step_s=step_s,
            gone=tuple(str(each.member) for each in seen if each.is_gone),
            stopped=tuple(str(each.member) for each in seen if each.is_stopped),
            lost_nodes=tuple(node.address for node in self._far if node.is_lost),
            ranks=self._told,
            heard=self._heard,
            unheard=self._asked_at is not None and now - self._asked_at > ASK_EVERY_S,
            computes=self._uses_cpu(placed, now),
            canaries_back=frozenset(self._back),
            canaries_refused=frozenset(self._refused),
            paused=self._paused,
        )
        self._told, self._heard, self._paused = None, False, False
        self._back.clear()
        self._refused.clear()
        return look

    def _uses_cpu(self, placed: Sequence[tuple[str, Seen]], now: float) -> bool:
        if now - self._cpu_since >= COMPUTES_OVER_S:
            cpu = {(node, each.member): each.cpu_s for node, each in placed}
            used = sum(max(0.0, cpu_s - self._cpu.get(whose, cpu_s)) for whose, cpu_s in cpu.items())
            self._computes = used >= COMPUTES_SHARE * (now - self._cpu_since)
            self._cpu, self._cpu_since = cpu, now
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

    def ask(self, what: SendCanary | AskPaused) -> None:
        """Ask the engine; a later look tells what it answered."""
        if what not in self._asked or self._asked[what].done():
            asking = self._canary(what.rank) if isinstance(what, SendCanary) else self._ask_paused()
            self._asked[what] = asyncio.create_task(asking)

    async def _canary(self, rank: int) -> None:
        generated = await answered_token(self._session, self._engine, rank)
        self._heard = True
        (self._back if generated else self._refused).add(rank)

    async def _ask_paused(self) -> None:
        """Its engine cores answer that together: one that hangs does not, and without vLLM's dev mode nobody does."""
        within = aiohttp.ClientTimeout(total=PAUSE_TOLD_WITHIN_S)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            async with self._session.get(f"{self._engine.root_url}/is_paused", timeout=within) as answer:
                self._paused = answer.status == 200 and (await answer.json())["is_paused"] is True


async def answered_token(session: aiohttp.ClientSession, engine: Address, rank: int) -> bool:
    """True once that rank has generated a token. Refusals for now are asked again.

    False: an engine that has no completions, such as one of a pooling model, says so, and has proven that it hears.
    """
    body = {"model": engine.model, "prompt": [0], "max_tokens": 1, "temperature": 0, "min_tokens": 1}
    headers = {"X-data-parallel-rank": str(rank)}
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.post(f"{engine.root_url}/v1/completions", json=body, headers=headers) as answer:
                await answer.read()
                if answer.status < 500 and answer.status != 429:
                    return answer.status < 400
        await asyncio.sleep(ASK_AGAIN_S)
