"""The watch of an engine's other nodes; Ray and the actors there are stood in for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from local_vllm.engine import observe
from local_vllm.engine.observe import Address, FarNode, Watch
from local_vllm.processes.members import Member, Seen

WORKER = Member(7, 70, "ray::RayWorkerProc")


@dataclass
class Cluster:
    """One node besides the engine's own. Its actors look until the `dying`th look of each."""

    dying: int
    is_alive: bool = True
    started: list[tuple[Member, ...]] = field(default_factory=list)

    def node_watch_on(self, node_id: str, folder: Path, settled: tuple[Member, ...] = ()) -> SimpleNamespace:
        self.started.append(settled)
        looks = iter(range(self.dying))

        async def settle() -> tuple[Member, ...]:
            return (WORKER,)

        async def look() -> tuple[Seen, ...]:
            if next(looks, None) is None:
                raise ray.exceptions.ActorDiedError
            return (Seen(WORKER, "S", cpu_s=float(len(self.started))),)

        return SimpleNamespace(settle=SimpleNamespace(remote=settle), look=SimpleNamespace(remote=look))

    def nodes(self) -> list[dict[str, object]]:
        return [{"NodeID": "n2", "Alive": self.is_alive}]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    there = Cluster(dying=2)
    monkeypatch.setattr(observe, "node_watch_on", there.node_watch_on)
    monkeypatch.setattr(observe.ray, "nodes", there.nodes)
    monkeypatch.setattr(observe, "ASK_NODE_EVERY_S", 0.01)
    return there


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not fact():
            await asyncio.sleep(0.01)


async def test_a_node_whose_watching_process_died_is_watched_by_another_for_the_same_processes(cluster: Cluster) -> None:
    node = FarNode("n2", "10.0.0.2", Path("/tmp/members"))
    await node.settle()
    watching = asyncio.create_task(node.watch())
    await until(lambda: len(cluster.started) > 2)
    assert cluster.started[1:3] == [(WORKER,)] * 2
    assert not node.is_lost
    cluster.is_alive = False
    await until(lambda: node.is_lost)
    await watching


class Here:
    """A process of the engine's own node that uses its CPU, with the pid of one far away that does not."""

    def __init__(self) -> None:
        self._cpu_s = 1.0

    def look(self) -> tuple[Seen, ...]:
        self._cpu_s += 10
        return (Seen(WORKER, "R", self._cpu_s),)


async def test_processes_of_two_nodes_with_one_pid_are_told_apart(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "COMPUTES_OVER_S", 0.1)
    far = FarNode("n2", "10.0.0.2", Path("/tmp/members"))
    far.is_lost, far.seen = True, (Seen(WORKER, "S", cpu_s=5000.0),)
    looks = []
    async with Watch(Address("http://127.0.0.1:1", "key", "m"), Here(), [far]) as watch:  # type: ignore[arg-type]
        async for look in watch.looks():
            looks.append(look)
            if len(looks) == 4:
                break
    assert [look.computes for look in looks[1:]] == [True] * 3
