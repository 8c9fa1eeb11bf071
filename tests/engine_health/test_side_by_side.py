"""Several engines launched by one run: who waits for whom, and whose groups are whose; Ray is stood in for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from local_vllm.cluster.groups import VLLMGroup
from local_vllm.engine import launching
from local_vllm.engine.launching import launch_engines
from local_vllm.engine.spec import EngineState, EngineStatus
from local_vllm.errors import RunError
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import Placement, plan_placements
from local_vllm.plan.topology import PackStrategy, Topology

pytestmark = pytest.mark.timeout(20)


@dataclass
class Ray:
    """The groups that there are. An engine's come when it is told to place itself."""

    groups: dict[str, VLLMGroup] = field(default_factory=dict)
    launched: list[str] = field(default_factory=list)

    def place(self, engine: StandInEngine, on: Sequence[dict[str, int]] = ()) -> None:
        """Its groups as planned, or `on` other nodes."""
        ranks = engine.spec.placement.ranks
        for rank, gpus in enumerate(on or [{slot.node_id: slot.gpus for slot in each.slots} for each in ranks]):
            group_id = f"{rank}-{engine.job:08x}"
            self.groups[group_id] = VLLMGroup(group_id, engine.spec.placement.topology.world_size, gpus)


class StandInEngine:
    """Takes its GPUs when it is told to."""

    def __init__(self, ray: Ray, placement: Placement, job: int) -> None:
        self.spec = SimpleNamespace(placement=placement, log_path="/logs/engine.log")
        self.job = job
        self.is_placed = False
        self.failed = ""
        self._ray = ray

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(1, "s", "m", EngineState.FAILED if self.failed else EngineState.STARTING)

    async def prepare(self) -> bool:
        return True

    async def launch(self) -> None:
        self._ray.launched.append(self.spec.placement.topology.server)

    async def fail(self, why: str) -> None:
        self.failed = why


class Lease:
    """Lost after so many launches."""

    def __init__(self, launches: int) -> None:
        self._left = launches

    async def check(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise RunError("the lease was lost")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    stand_in = Ray()
    monkeypatch.setattr(launching, "vllm_groups", lambda: dict(stand_in.groups))
    monkeypatch.setattr(launching, "LOOK_AGAIN_S", 0.01)
    return stand_in


def planned(ray: Ray, gpus: Sequence[int], *asked: tuple[int, int, str]) -> list[StandInEngine]:
    nodes = tuple(Node(f"n{i}", f"n{i}", free, free, 64.0, 64.0) for i, free in enumerate(gpus))
    servers = [Topology(f"s{i}", dp, tp, 1, PackStrategy(name)) for i, (dp, tp, name) in enumerate(asked)]
    placements = plan_placements(Cluster(nodes), servers)
    return [StandInEngine(ray, placement, job) for job, placement in enumerate(placements, start=1)]


@asynccontextmanager
async def launching_of(engines: Sequence[StandInEngine], lease: Lease | None = None) -> AsyncIterator[None]:
    @asynccontextmanager
    async def permitted() -> AsyncIterator[Lease | None]:
        yield lease

    task = asyncio.create_task(launch_engines(engines, permitted))  # type: ignore[arg-type]
    try:
        await asyncio.sleep(0.2)
        yield
        async with asyncio.timeout(5):
            await task
    finally:
        task.cancel()


async def test_engines_on_one_node_are_launched_side_by_side_and_each_finds_its_own_groups(ray: Ray) -> None:
    engines = planned(ray, [8], (1, 2, "strict"), (1, 2, "strict"))
    async with launching_of(engines):
        assert ray.launched == ["s0", "s1"]
        ray.place(engines[1])
        await asyncio.sleep(0.2)
        assert sum(engine.is_placed for engine in engines) == 1, "one job is one engine's"
        ray.place(engines[0])
    assert all(engine.is_placed and not engine.failed for engine in engines)


async def test_an_engine_that_takes_what_others_leave_waits_for_them(ray: Ray) -> None:
    engines = planned(ray, [3, 4], (1, 1, "strict"), (1, 6, "span"))
    async with launching_of(engines):
        assert ray.launched == ["s0"]
        ray.place(engines[0])
        await asyncio.sleep(0.2)
        assert ray.launched == ["s0", "s1"]
        ray.place(engines[1])
    assert all(engine.is_placed for engine in engines)


async def test_an_engine_that_has_failed_is_not_waited_for(ray: Ray) -> None:
    engines = planned(ray, [3, 4], (1, 1, "strict"), (1, 6, "span"))
    async with launching_of(engines):
        engines[0].failed = "vLLM ended"
        await asyncio.sleep(0.2)
        assert ray.launched == ["s0", "s1"]
        ray.place(engines[1])
    assert engines[1].is_placed


async def test_what_is_left_of_an_engine_that_has_failed_is_nobody_elses(ray: Ray) -> None:
    engines = planned(ray, [3, 4], (1, 1, "strict"), (1, 6, "span"))
    async with launching_of(engines):
        master = engines[1].spec.placement.master_node_id
        ray.place(engines[0], [{master: 3, "n9": 4}])
        engines[0].failed = "vLLM ended"
        await asyncio.sleep(0.2)
        assert ray.launched == ["s0", "s1"]
        ray.place(engines[1])
    assert (engines[1].is_placed, engines[1].failed) == (True, "")


async def test_only_the_engine_that_lies_elsewhere_has_failed(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = planned(ray, [4, 4], (1, 4, "strict"), (2, 2, "strict"))
    nodes = tuple(Node(name, name, 4, 4, 64.0, 64.0) for name in ("n0", "n1"))
    monkeypatch.setattr(launching, "read_cluster", lambda: Cluster(nodes))
    (master,) = engines[1].spec.placement.gpus_by_node
    (other,) = {"n0", "n1"} - {master}
    async with launching_of(engines):
        ray.place(engines[1], [{master: 2}, {other: 2}])
        ray.place(engines[0])
    assert (engines[0].is_placed, engines[0].failed) == (True, "")
    assert engines[1].failed.startswith(f"planned on {master} (4 GPUs), but Ray placed it on n0 (2 GPUs), n1 (2 GPUs)")


async def test_without_the_lease_no_more_engines_are_launched(ray: Ray) -> None:
    engines = planned(ray, [3, 4], (1, 1, "strict"), (1, 6, "span"))
    async with launching_of(engines, Lease(1)):
        ray.place(engines[0])
    assert ray.launched == ["s0"]
    assert (engines[0].is_placed, engines[0].failed) == (True, "")
    assert engines[1].failed == "it could not be launched: the lease was lost"
