"""One response store for all replicas of a run: the store itself stands in a Ray actor of the run's own
process, and every replica has a hand on it. Writes travel in batches, after the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from local_vllm.engine.spec import NAMESPACE
from local_vllm.errors import UpstreamError
from local_vllm.protocol.stored import Stored, is_own_id
from local_vllm.serving.replies import logger
from local_vllm.serving.response_store import NoStore, ResponseStore, StoreSetting, check_file, open_store

CONCURRENT_CALLS = 1000
ASK_DEADLINE_S = 10.0
CLOSE_DEADLINE_S = 5.0
# The answer may reach a client, and the client another replica, before what was answered is here.
LATE_S = 1.0
LOOK_AGAIN_S = 0.02
# Writes are gathered for so long: a call of the actor costs as much as answering several requests.
GATHER_S = 0.05
# What one replica may hold of writes that the store has not taken.
MAX_WAITING_BYTES = 64 << 20


class StoreHost:
    """The actor around a store. What a replica has just sent is waited for a moment."""

    def __init__(self, setting: StoreSetting) -> None:
        self._store = open_store(setting)

    async def put(self, batch: list[Stored]) -> None:
        for stored in batch:
            self._store.put(stored)

    async def chain(self, response_id: str) -> list[Stored]:
        await self._until_here(response_id)
        return await self._store.chain(response_id)

    async def get(self, response_id: str) -> Stored | None:
        await self._until_here(response_id)
        return await self._store.get(response_id)

    async def delete(self, response_id: str) -> bool:
        await self._until_here(response_id)
        return await self._store.delete(response_id)

    async def close(self) -> None:
        await self._store.close()

    async def _until_here(self, response_id: str) -> None:
        if not is_own_id(response_id):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LATE_S):
                while await self._store.get(response_id) is None:
                    await asyncio.sleep(LOOK_AGAIN_S)


class SharedStore:
    """A replica's hand on the store. Writes are gathered and sent, and before anything is asked."""

    def __init__(self, actor_name: str) -> None:
        self._name = actor_name
        self._actor: ray.actor.ActorHandle | None = None
        self._waiting: list[Stored] = []
        self._waiting_bytes = 0
        self._sender: asyncio.Task[None] | None = None

    def put(self, stored: Stored) -> None:
        if self._waiting_bytes + stored.size > MAX_WAITING_BYTES:
            logger.warning("The response store does not keep up: a response was not kept.")
            return
        self._waiting.append(stored)
        self._waiting_bytes += stored.size
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send_all())

    async def chain(self, response_id: str) -> list[Stored]:
        await self._send()
        return await self._ask("chain", response_id)

    async def get(self, response_id: str) -> Stored | None:
        await self._send()
        return await self._ask("get", response_id)

    async def delete(self, response_id: str) -> bool:
        await self._send()
        return await self._ask("delete", response_id)

    async def close(self) -> None:
        """Gives what still waits a moment to arrive."""
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=CLOSE_DEADLINE_S)

    async def _send_all(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            await self._send()

    async def _send(self) -> None:
        if not self._waiting:
            return
        batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
        try:
            await self._ask("put", batch)
        except UpstreamError as error:
            logger.warning("%d responses were not kept: %s", len(batch), error)

    async def _ask(self, method: str, argument: Any) -> Any:
        """Raises UpstreamError (503) when the store does not answer."""
        try:
            async with asyncio.timeout(ASK_DEADLINE_S):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(ray.get_actor, self._name, NAMESPACE)
                return await getattr(self._actor, method).remote(argument)
        except (ray.exceptions.RayError, ValueError, TimeoutError) as error:
            self._actor = None
            message = f"The response store does not answer ({type(error).__name__}); try again."
            raise UpstreamError(message, status=503, code="response_store_unavailable") from error


@dataclass(frozen=True, slots=True)
class SharedStores:
    """The stores of a run as its replicas see them; `run` is what tells the run's actors from others'."""

    run: str
    _open: dict[StoreSetting, ResponseStore] = field(default_factory=dict)

    def store(self, setting: StoreSetting) -> ResponseStore:
        if setting not in self._open:
            none = setting.kind == "none"
            self._open[setting] = NoStore() if none else SharedStore(actor_name(self.run, setting))
        return self._open[setting]


def actor_name(run: str, setting: StoreSetting) -> str:
    digest = hashlib.blake2b(repr(setting).encode(), digest_size=6).hexdigest()
    return f"responses:{run}:{digest}"


@contextmanager
def store_hosts(run: str, settings: Collection[StoreSetting]) -> Iterator[None]:
    """The actors behind `SharedStores(run)`, on this machine. They end with this process at the latest.

    An actor that dies comes back: with its file, or empty when it kept responses in memory.

    Raises:
        ConfigError: an SQLite file cannot be used.
    """
    actors = [_start(run, setting) for setting in set(settings) if setting.kind != "none"]
    try:
        yield
    finally:
        _end(actors)


def _start(run: str, setting: StoreSetting) -> ray.actor.ActorHandle:
    check_file(setting)
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(StoreHost)
        .options(
            name=actor_name(run, setting),
            namespace=NAMESPACE,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=CONCURRENT_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote(setting)
    )


def _end(actors: list[ray.actor.ActorHandle]) -> None:
    """What was sent is written before a file is closed."""
    if not actors:
        return
    with contextlib.suppress(ray.exceptions.RayError):
        ray.wait([actor.close.remote() for actor in actors], num_returns=len(actors), timeout=CLOSE_DEADLINE_S)
    for actor in actors:
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(actor)

