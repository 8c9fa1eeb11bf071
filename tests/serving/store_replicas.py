"""The program of test_shared_store: a run with its stores, and replicas of it in processes of their own.

Writes what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import ray

from local_vllm.engine.spec import NAMESPACE
from local_vllm.errors import UpstreamError
from local_vllm.protocol.stored import Stored
from local_vllm.serving.response_store import StoreSetting
from local_vllm.serving.shared_store import SharedStores, actor_name, store_hosts

RUN = "r1"


def stored(number: int, previous: int | None = None) -> Stored:
    before = None if previous is None else own_id(previous)
    return Stored(own_id(number), before, b'{"input": "%d"}' % number, b"{}")


def own_id(number: int) -> str:
    return f"resp_{number:032x}"


class FakeReplica:
    """A process with a hand on the store, as a replica has one."""

    def __init__(self, setting: StoreSetting) -> None:
        self.store = SharedStores(RUN).store(setting)

    async def put(self, *responses: Stored) -> float:
        begun = time.perf_counter()
        for response in responses:
            self.store.put(response)
        return time.perf_counter() - begun

    async def chain(self, response_id: str) -> list[str]:
        return [each.id for each in await self.store.chain(response_id)]

    async def put_later(self, response: Stored) -> None:
        await asyncio.sleep(0.2)
        self.store.put(response)

    async def finds(self, response_id: str) -> bool | str:
        try:
            return await self.store.get(response_id) is not None
        except UpstreamError as error:
            return f"{error.status} {error.code}"


def pid_of(setting: StoreSetting) -> int:
    host = ray.get_actor(actor_name(RUN, setting), NAMESPACE)
    return ray.get(host.__ray_call__.remote(lambda self: os.getpid()))


def watch(setting: StoreSetting) -> dict[str, object]:
    """What two replicas see of each other's responses, and what is left when the store's process is killed."""
    Replica = ray.remote(FakeReplica).options(num_cpus=0)
    one, other = Replica.remote(setting), Replica.remote(setting)
    seen: dict[str, object] = {}
    seen["put_s"] = ray.get(one.put.remote(*[stored(n, n - 1 if n else None) for n in range(100)]))
    seen["chain"] = len(ray.get(other.chain.remote(own_id(99))))
    one.put_later.remote(stored(200))
    seen["late"] = ray.get(other.finds.remote(own_id(200)))
    seen["unknown"] = ray.get(other.finds.remote(own_id(300)))
    ray.kill(one)
    seen["after_its_replica_died"] = ray.get(other.finds.remote(own_id(7)))
    os.kill(pid_of(setting), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while isinstance(found := ray.get(other.finds.remote(own_id(7))), str) and time.monotonic() < deadline:
        time.sleep(0.2)
    seen["after_the_store_died"] = found
    ray.get(other.put.remote(stored(400)))
    seen["and_then"] = ray.get(other.finds.remote(own_id(400)))
    return seen


def main(path: str, seen_path: str) -> None:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    settings = [StoreSetting(), StoreSetting(path)]
    with store_hosts(RUN, settings):
        seen = {setting.kind == "memory": watch(setting) for setting in settings}
    left = [name["name"] for name in ray.util.list_named_actors(all_namespaces=True)]
    # Not printed: Ray writes there too, of the processes that were killed.
    Path(seen_path).write_text(json.dumps({"memory": seen[True], "sqlite": seen[False], "left": left}))
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
