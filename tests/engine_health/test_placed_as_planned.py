"""When an engine counts as placed as it was planned; Ray and the engine's actor are stood in for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray

from local_vllm.cluster.groups import VLLMGroup
from local_vllm.engine import launching
from local_vllm.engine.launching import launch_engine
from local_vllm.engine.spec import EngineSpec, EngineState, EngineStatus
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import plan_placements
from local_vllm.plan.topology import PackStrategy, Topology

pytestmark = pytest.mark.timeout(20)

CLUSTER = Cluster(tuple(Node(name, name, 4, 4, 64.0, 64.0) for name in ("n1", "n2")))
# Two ranks with two GPUs each, on the first node.
(PLACEMENT,) = plan_placements(CLUSTER, [Topology("policy_model", 2, 2, 1, PackStrategy.STRICT)])
SPEC = EngineSpec(
    run_id="r1",
    server="policy_model",
    model="m",
    served_name="m",
    api_key="k",
    vllm_serve_kwargs={},
    vllm_serve_env_vars={},
    placement=PLACEMENT,
    hf_home=Path("/hf"),
    hf_token=None,
    show_stats=False,
    debug=False,
    start_timeout_s=10.0,
    log_path=Path("/logs/policy_model.log"),
)


@dataclass
class StandInEngine:
    """It is healthy after so many looks at it."""

    healthy_after: int = 10**6
    spec: EngineSpec = SPEC
    is_placed: bool = False
    failed: str = ""
    launched: list[str] = field(default_factory=list)

    @property
    def status(self) -> EngineStatus:
        self.healthy_after -= 1
        state = EngineState.HEALTHY if self.healthy_after < 0 else EngineState.STARTING
        return EngineStatus(1, "policy_model", "m", EngineState.FAILED if self.failed else state)

    async def launch(self) -> None:
        self.launched.append("once")

    async def fail(self, why: str) -> None:
        self.failed = why


def groups(*on: str, job: int = 1) -> dict[str, VLLMGroup]:
    """One group with two GPUs on each of these nodes, all of one job; `-` is one that waits for room."""
    those = (VLLMGroup(f"g{number}-{job:08x}", 2, {} if node == "-" else {node: 2}) for number, node in enumerate(on))
    return {group.group_id: group for group in those}


async def launch(
    monkeypatch: pytest.MonkeyPatch, engine: StandInEngine, seen: Sequence[dict[str, VLLMGroup]], *, alone: bool
) -> StandInEngine:
    """`seen` one after the other, the first before the launch; the last stays."""
    waiting = list(seen)
    monkeypatch.setattr(launching, "vllm_groups", lambda: waiting.pop(0) if len(waiting) > 1 else waiting[0])
    monkeypatch.setattr(launching, "read_cluster", lambda: CLUSTER)
    monkeypatch.setattr(launching, "LOOK_AGAIN_S", 0.0)
    await launch_engine(engine, alone=alone)  # type: ignore[arg-type]
    return engine


@pytest.mark.parametrize("alone", [True, False])
async def test_an_engine_whose_groups_are_where_they_were_planned_is_placed(
    monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    assert PLACEMENT.gpus_by_node == {"n1": 4}
    engine = await launch(monkeypatch, StandInEngine(), [{}, groups("n1"), groups("n1", "-"), groups("n1", "n1")], alone=alone)
    assert (engine.is_placed, engine.failed) == (True, "")


async def test_alone_on_its_cluster_an_engine_elsewhere_has_failed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await launch(monkeypatch, StandInEngine(), [{}, groups("n1", "n2")], alone=True)
    assert engine.failed.startswith("planned on n1 (4 GPUs), but Ray placed it on n1 (2 GPUs), n2 (2 GPUs)")


async def test_an_engine_that_asked_for_more_than_planned_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"g0-00000001": VLLMGroup("g0-00000001", 5, {"n1": 4, "n2": 1})}
    engine = await launch(monkeypatch, StandInEngine(healthy_after=5), [{}, more], alone=False)
    assert engine.failed.startswith("planned on n1 (4 GPUs), but Ray placed it on n1 (4 GPUs), n2 (1 GPU)")


async def test_groups_of_somebody_else_that_come_first_are_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    others = groups("n2", "n2", job=2)
    seen = [{}, others, others | groups("n1"), others | groups("n1", "n1")]
    engine = await launch(monkeypatch, StandInEngine(), seen, alone=False)
    assert (engine.is_placed, engine.failed) == (True, "")


async def test_beside_others_an_engine_that_came_up_elsewhere_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await launch(monkeypatch, StandInEngine(healthy_after=5), [{}, groups("n1", "n2")], alone=False)
    assert "planned on n1 (4 GPUs)" in engine.failed
    assert not engine.is_placed


async def test_beside_others_an_engine_of_their_shape_on_its_node_is_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = groups("n1", "n2", job=2)
    engine = await launch(monkeypatch, StandInEngine(), [{}, others, others | groups("n1", "n1")], alone=False)
    assert (engine.is_placed, engine.failed) == (True, "")


async def test_an_engine_that_finds_no_room_has_failed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "PLACED_WITHIN_S", 0.0)
    engine = await launch(monkeypatch, StandInEngine(), [{}, groups("n1", "-")], alone=False)
    assert "Ray has found no room for 2 of the 4 GPUs" in engine.failed


def test_a_group_ends_with_the_id_of_its_job() -> None:
    job = ray.JobID.from_int(7)
    assert VLLMGroup(ray.PlacementGroupID.of(job).hex(), 2, {}).job == job.hex()
