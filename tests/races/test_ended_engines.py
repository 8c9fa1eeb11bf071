"""A run whose only engine has ended for good. The engine is a stand-in."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from joined_ray import JoinedRay
from ng_run_process import GONE_WITHIN_S, command_line, until
from racing_runs import racers, wait

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

NO_RESTARTS = "++left.responses_api_models.local_vllm_model.max_restarts=0"


def engine_processes(port: str) -> list[psutil.Process]:
    """The guard and `vllm serve` below it: Ray has started both."""
    return [process for process in psutil.process_iter() if f"--port {port}" in command_line(process)]


def test_a_killed_guard_takes_its_engine_along_and_a_run_without_engines_ends(
    stand_in_cluster: JoinedRay, tmp_path: Path
) -> None:
    with racers(stand_in_cluster, tmp_path, 1, ["left"], NO_RESTARTS) as (run,):
        wait([run])
        port = run.record()["servers"][0]["engine_url"].rpartition(":")[2].removesuffix("/v1")
        guards = [each for each in engine_processes(port) if "local_vllm.processes.guard" in command_line(each)]
        assert len(guards) == 1 and len(engine_processes(port)) > 1
        guards[0].kill()
        assert until(lambda: not engine_processes(port), GONE_WITHIN_S)
        assert run.process.wait(60) == 1
        assert "every engine has ended" in run.text()
    assert until(lambda: stand_in_cluster.gpus_free() == 4, 30)
