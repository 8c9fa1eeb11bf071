"""The host of an engine as an object of this process, over real processes that stand in for `vllm serve`."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from local_vllm.engine import command, node_watch, supervise, vllm_serve
from local_vllm.engine.actor import EngineHost
from local_vllm.engine.log import LogReader
from local_vllm.engine.spec import EngineSpec, EngineState, EngineStatus
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import plan_placements
from local_vllm.plan.topology import PackStrategy, Topology

pytestmark = pytest.mark.timeout(60)

PROGRAM = Path(__file__).parent / "stand_in_vllm.py"


@pytest.fixture
def port_taken(tmp_path: Path) -> Path:
    return tmp_path / "port_taken"


@pytest.fixture
async def host(tmp_path: Path, port_taken: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineHost]:
    topology = Topology("policy_model", 1, 1, 1, PackStrategy.STRICT)
    (placement,) = plan_placements(Cluster((Node("n1", "127.0.0.1", 1, 1, 8.0, 8.0),)), [topology])
    spec = EngineSpec(
        run_id=uuid.uuid4().hex[:8],
        server="policy_model",
        model="m",
        served_name="m",
        api_key="k",
        vllm_serve_kwargs={},
        vllm_serve_env_vars={"STAND_IN_PORT_TAKEN": str(port_taken)},
        placement=placement,
        hf_home=tmp_path,
        hf_token=None,
        show_stats=False,
        debug=False,
        start_timeout_s=30.0,
        log_path=tmp_path / "logs" / "policy_model.log",
    )
    monkeypatch.setattr(vllm_serve.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    monkeypatch.setattr(vllm_serve.machine, "engine_kind", lambda: "gpu")
    monkeypatch.setattr(command, "serve_command", lambda spec, site: [sys.executable, str(PROGRAM), str(site.port)])
    started = EngineHost(spec)
    try:
        yield started
    finally:
        await started.stop()


async def told(host: EngineHost) -> EngineStatus:
    """The first status that is not one of coming up."""
    status = await host.status()
    async with asyncio.timeout(40):
        while status.state.is_coming_up:
            status = await host.watch(status.version)
    return status


async def test_an_engine_is_told_of_when_it_has_generated_and_ends_without_leaving_anything(host: EngineHost) -> None:
    await host.launch()
    assert (await told(host)).state is EngineState.HEALTHY
    assert host.spec.members.stat().st_mode & 0o077 == 0
    await host.stop()
    assert (await host.status()).state is EngineState.STOPPED
    assert not host.spec.members.exists()


async def test_a_host_that_is_stopped_is_ended_by_the_guard_of_its_engine(host: EngineHost) -> None:
    await host.launch()
    assert (await told(host)).state is EngineState.HEALTHY
    (guard,) = (child for child in psutil.Process().children() if "local_vllm.processes.guard" in child.cmdline())
    assert "--owner-must-run" in guard.cmdline()


async def test_an_engine_whose_port_was_taken_is_tried_again_without_the_workers_of_that_attempt(
    host: EngineHost, port_taken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_watch, "GOES_ON_S", 0.1)
    port_taken.touch()
    await host.launch()
    status = await told(host)
    assert (status.state, status.detail) == (EngineState.HEALTHY, "")
    assert not port_taken.exists()


async def test_an_error_that_nobody_foresaw_loses_an_engine_that_was_well(
    host: EngineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("marks")

    await host.launch()
    assert (healthy := await told(host)).state is EngineState.HEALTHY
    monkeypatch.setattr(supervise, "step", broken)
    lost = await host.watch(healthy.version)
    assert (lost.state, lost.detail) == (EngineState.LOST, "KeyError: 'marks'")


async def test_a_lost_engine_has_ended_when_nothing_of_it_is_left(
    host: EngineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = (supervise.GiveUp("it generates nothing", stalled=True),)
    await host.launch()
    assert (healthy := await told(host)).state is EngineState.HEALTHY
    monkeypatch.setattr(supervise, "step", lambda vigil, look, stall_timeout_s: (vigil, lost))
    assert (await host.watch(healthy.version)).state is EngineState.STALLED
    assert host.spec.members.exists(), "it is told of first"
    await host.ended()
    assert not host.spec.members.exists()


def test_a_log_that_is_not_there_has_no_last_lines(tmp_path: Path) -> None:
    assert LogReader(tmp_path / "engine.log").tail() == ""
