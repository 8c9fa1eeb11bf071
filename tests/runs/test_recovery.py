"""When an engine of a run is started again, where, and when it is given up; actor and cluster are stood in for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from local_vllm.engine import owned
from local_vllm.engine.spec import EngineSpec, EngineState, EngineStatus
from local_vllm.engine.supervise import HEALTHY_AGAIN_S
from local_vllm.errors import PlacementError
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import Placement, plan_placements
from local_vllm.plan.topology import PackStrategy, Topology
from local_vllm.runs import recovery
from local_vllm.runs.recovery import Recovery

TOPOLOGY = Topology("policy_model", 1, 1, 1, PackStrategy.STRICT)


def placed_on(address: str) -> Placement:
    (placement,) = plan_placements(Cluster((Node(address, address, 1, 1, 8.0, 8.0),)), [TOPOLOGY])
    return placement


SPEC = EngineSpec(
    run_id="r1",
    server="policy_model",
    model="m",
    served_name="m",
    api_key="k",
    vllm_serve_kwargs={},
    vllm_serve_env_vars={},
    placement=placed_on("10.0.0.1"),
    hf_home=Path("/hf"),
    hf_token=None,
    show_stats=False,
    debug=False,
    start_timeout_s=10.0,
    log_path=Path("/logs/policy_model.log"),
    max_restarts=2,
)


@dataclass
class StandInEngine:
    """Every launch ends as the list says, one after the other: with a state, after so many healthy seconds."""

    endings: list[tuple[EngineState, float]]
    spec: EngineSpec = SPEC
    healthy_s: float = 0.0
    launches: list[EngineSpec] = field(default_factory=list)
    given_up: str = ""
    steps: list[str] = field(default_factory=list)
    status: EngineStatus = EngineStatus(0, "policy_model", "m", EngineState.STARTING)

    async def follow(self, tell: Callable[[EngineStatus], None]) -> EngineStatus:
        state, self.healthy_s = self.endings.pop(0)
        self.status = self._told(state, "it has ended")
        tell(self.status)
        return self.status

    def _told(self, state: EngineState, detail: str, restarts: int = 0) -> EngineStatus:
        return EngineStatus(1, "policy_model", "m", state, detail, restarts=restarts, max_restarts=2)

    async def renew(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.steps.append("renew")
        self.launches.append(spec)

    async def ended(self) -> None:
        self.steps.append("ended")

    async def prepare(self) -> bool:
        return True

    async def restarting(self, restarts: int, detail: str) -> EngineStatus:
        self.status = self._told(EngineState.RESTARTING, detail, restarts)
        return self.status

    def lost(self, why: str) -> EngineStatus:
        self.status = self._told(EngineState.LOST, why)
        return self.status

    async def give_up(self, why: str) -> None:
        self.given_up = why
        self.status = self._told(EngineState.FAILED, why)


class StandInActor:
    """Each of its methods is called through Ray, and answers nothing."""

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=self._answer)

    async def _answer(self, *arguments: object) -> None:
        return None


@dataclass
class StandInTenant:
    """Has room on `address` after being asked `full` times in vain; counts what it reserved and got back."""

    address: str = "10.0.0.1"
    full: int = 0
    reserved: int = 0
    given_back: int = 0

    async def replan(self, topology: Topology) -> tuple[Placement, object]:
        if self.full:
            self.full -= 1
            raise PlacementError("no room")
        self.reserved += 1
        return placed_on(self.address), SimpleNamespace(close=self._close)

    def _close(self) -> None:
        self.given_back += 1

    @asynccontextmanager
    async def launching(self, engines: int) -> AsyncIterator[None]:
        yield None


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def launched(engine: StandInEngine, alone: bool) -> None:
        return None

    async def at_once(seconds: float) -> None:
        return None

    monkeypatch.setattr(recovery, "launch_engine", launched)
    monkeypatch.setattr(recovery, "asyncio", SimpleNamespace(sleep=at_once, create_task=asyncio.create_task))


async def kept_up(engine: StandInEngine, tenant: StandInTenant | None = None) -> list[str]:
    told: list[EngineStatus] = []
    await Recovery(engine, tenant or StandInTenant(), told.append).keep_up()  # type: ignore[arg-type]
    return [status.state_in_words for status in told]


LOST, STOPPED = (EngineState.LOST, 10.0), (EngineState.STOPPED, 10.0)


async def test_an_engine_that_fails_at_its_first_start_is_not_started_again() -> None:
    engine = StandInEngine([(EngineState.FAILED, 0.0)])
    assert await kept_up(engine) == ["failed"]
    assert engine.launches == []


async def test_a_lost_engine_is_started_again_and_says_which_time_it_is() -> None:
    engine = StandInEngine([LOST, STOPPED])
    assert await kept_up(engine) == ["lost", "restarting 1/2", "stopped"]
    (again,) = engine.launches
    assert (again.restarts, again.launch) == (1, 1)
    assert again.members != SPEC.members


async def test_an_engine_that_is_lost_too_often_is_given_up_with_the_last_reason() -> None:
    engine = StandInEngine([LOST] * 3)
    assert (await kept_up(engine))[-1] == "failed"
    assert len(engine.launches) == 2
    assert engine.given_up == "given up after 2 restarts (max_restarts): it has ended"


async def test_long_health_begins_the_count_anew_but_no_launch_has_the_folder_of_another() -> None:
    engine = StandInEngine([(EngineState.STALLED, HEALTHY_AGAIN_S + 1)] * 5 + [STOPPED])
    await kept_up(engine)
    assert [spec.restarts for spec in engine.launches] == [1] * 5
    assert len({spec.members for spec in engine.launches}) == 5


async def test_it_goes_to_another_node_when_its_own_is_gone() -> None:
    engine = StandInEngine([LOST, STOPPED])
    await kept_up(engine, StandInTenant("10.0.0.9"))
    assert engine.spec.placement.master_address == "10.0.0.9"


async def test_it_waits_until_what_it_had_is_free() -> None:
    engine = StandInEngine([LOST, STOPPED])
    await kept_up(engine, StandInTenant(full=7))
    assert len(engine.launches) == 1


async def test_nothing_is_left_of_a_launch_before_the_next_one() -> None:
    engine = StandInEngine([LOST, LOST, STOPPED])
    await kept_up(engine)
    assert engine.steps == ["ended", "renew"] * 2


@pytest.mark.timeout(20)
async def test_an_engine_that_was_healthy_for_long_and_finds_no_room_is_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine as the run holds it; the actor behind it is stood in for."""
    monkeypatch.setattr(recovery, "FREE_WITHIN_S", 0.0)
    monkeypatch.setattr(owned, "_new_actor", lambda spec, anywhere=False: StandInActor())
    engine = owned.OwnedEngine(SPEC)
    engine.lost("it has ended")
    engine.healthy_s = HEALTHY_AGAIN_S + 1
    assert await kept_up(engine, StandInTenant(full=10**6)) == ["restarting 1/2", "restarting 2/2", "failed"]


async def test_an_engine_is_started_again_though_nobody_can_be_told_of_it() -> None:
    def full_disk(status: EngineStatus) -> None:
        raise OSError("No space left on device")

    engine = StandInEngine([LOST, STOPPED])
    await Recovery(engine, StandInTenant(), full_disk).keep_up()  # type: ignore[arg-type]
    assert len(engine.launches) == 1


async def test_an_error_that_nobody_foresaw_gives_the_engine_up_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(topology: Topology) -> None:
        raise KeyError("bundles")

    engine, tenant = StandInEngine([LOST]), StandInTenant()
    monkeypatch.setattr(tenant, "replan", broken)
    assert (await kept_up(engine, tenant))[-1] == "failed"
    assert engine.given_up == "given up: KeyError: 'bundles'"


async def test_an_engine_that_finds_no_room_is_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "FREE_WITHIN_S", 0.0)
    engine = StandInEngine([LOST])
    assert (await kept_up(engine, StandInTenant(full=10**6)))[-1] == "failed"
    assert "no room" in engine.given_up


async def test_what_was_reserved_is_given_back_however_a_launch_ends() -> None:
    tenant = StandInTenant()
    await kept_up(StandInEngine([LOST] * 3), tenant)
    assert tenant.reserved == 2
    assert tenant.given_back >= tenant.reserved


async def test_with_no_restarts_allowed_a_lost_engine_has_failed() -> None:
    engine = StandInEngine([LOST], spec=replace(SPEC, max_restarts=0))
    assert await kept_up(engine) == ["lost", "failed"]
