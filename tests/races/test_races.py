"""Runs that share one Ray cluster: started at the same moment, side by side, one leaving before the other.

The engine is a stand-in. How often they race is set by LOCAL_VLLM_RACES; scripts/races takes the full numbers, and
races with real engines as well.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_answers import SERVER
from joined_ray import JoinedRay
from ng_run_process import READY, NgRun, until
from racing_runs import SETTLED_WITHIN_S, one_run, racers, wait

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

RACES = int(os.environ.get("LOCAL_VLLM_RACES", "1"))


def gpus_of(run: NgRun) -> dict[str, int]:
    (server,) = run.record()["servers"]
    slots = [slot for rank in server["placement"]["ranks"] for slot in rank["slots"]]
    return {slot["address"]: slot["gpus"] for slot in slots}


def models(run: NgRun) -> list[str]:
    with urllib.request.urlopen(f"{run.record()['url']}/v1/models", timeout=20) as answer:
        return [model["id"] for model in json.load(answer)["data"]]


@contextmanager
def held_by(cluster: JoinedRay, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is connected to the cluster and has said `held`; killed in any case."""
    connect = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)\n"
    command = [sys.executable, "-c", connect + code, cluster.address]
    env = {**os.environ, **cluster.environment}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("race", range(RACES))
def test_of_two_runs_that_fit_together_both_come_up(stand_in_cluster: JoinedRay, tmp_path: Path, race: int) -> None:
    with racers(stand_in_cluster, tmp_path, size=2) as runs:
        wait(runs)
        for run in runs:
            assert READY in run.text(), run.text()
            assert models(run) == ["local-vllm-default"]
        assert stand_in_cluster.gpus_free() == 0
        first, second = runs if race % 2 else reversed(runs)
        assert first.stop(signal.SIGINT) == 0, first.text()
        assert models(second) == ["local-vllm-default"], "one that leaves takes nothing from the other"
        assert second.stop(signal.SIGTERM) == 0, second.text()
    assert stand_in_cluster.gpus_free() == 4
    assert stand_in_cluster.named_actors() == "[]"


@pytest.mark.parametrize("race", range(RACES))
def test_of_two_runs_that_do_not_fit_together_one_is_told_what_is_missing(
    stand_in_cluster: JoinedRay, tmp_path: Path, race: int
) -> None:
    with racers(stand_in_cluster, tmp_path, size=3) as runs:
        wait(runs)
        (up,) = [run for run in runs if READY in run.text()]
        (down,) = [run for run in runs if run is not up]
        assert down.process.returncode == 1
        told = r"largest free block is 1, .*GPUs in use: 3 by (left|right) of run \w+ \(pid \d+ on "
        assert re.search(told, down.text()), down.text()
        assert models(up) == ["local-vllm-default"]
        up.stop()
    assert stand_in_cluster.gpus_free() == 4


def test_a_run_waits_for_one_that_is_launching_and_takes_over_when_that_is_killed(
    stand_in_cluster: JoinedRay, tmp_path: Path
) -> None:
    hold = (
        "import asyncio, time\n"
        "from local_vllm.runs.lease import lease\n"
        "async def hold():\n"
        "    async with lease('launch', 'a run that hangs', hold_s=600, tell=lambda *_: None):\n"
        "        print('held', flush=True); time.sleep(600)\n"
        "asyncio.run(hold())"
    )
    with held_by(stand_in_cluster, hold) as holder, racers(stand_in_cluster, tmp_path, size=1, names=["left"]) as (run,):
        assert until(lambda: "waiting for a run that hangs" in run.text(), SETTLED_WITHIN_S), run.text()
        time.sleep(1)
        assert READY not in run.text()
        holder.kill()
        wait([run])
        assert READY in run.text(), run.text()


def test_a_lease_that_is_held_past_its_deadline_is_taken_away(stand_in_cluster: JoinedRay) -> None:
    code = (
        "import asyncio\n"
        "from local_vllm.errors import RunError\n"
        "from local_vllm.runs.lease import lease\n"
        "async def both():\n"
        "    async with lease('launch', 'the first', hold_s=1, tell=print) as first:\n"
        "        async with lease('launch', 'the second', hold_s=60, tell=print) as second:\n"
        "            await second.check()\n"
        "            try: await first.check()\n"
        "            except RunError as error: print(error)\n"
        "asyncio.run(both())"
    )
    told = stand_in_cluster.ask(code)
    assert "waiting for the first" in told
    assert "lease was lost" in told


def test_a_name_that_another_run_serves_is_refused_with_its_holder(stand_in_cluster: JoinedRay, tmp_path: Path) -> None:
    with racers(stand_in_cluster, tmp_path / "one", size=1, names=["same"]) as (first,):
        wait([first])
        with racers(stand_in_cluster, tmp_path / "two", size=1, names=["same"]) as (second,):
            wait([second])
            assert second.process.returncode == 1
            holder = first.record()
            assert f"same: served on this cluster by run {holder['run_id']} (pid {holder['pid']} on " in second.text()
        assert models(first) == ["local-vllm-default"]


def test_the_engines_of_a_run_take_their_gpus_side_by_side(stand_in_cluster: JoinedRay, tmp_path: Path) -> None:
    """Neither asks for any before the other one has been launched too."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(SERVER.format(name=name, key="dummy", size=2))
    variables = "responses_api_models.local_vllm_model.vllm_serve_env_vars"
    meet = [f"++{name}.{variables}.VLLM_STAND_IN_MEETS={tmp_path / 'met'}" for name in ("one", "two")]
    with one_run(stand_in_cluster, tmp_path, "+config_paths=[one.yaml,two.yaml]", *meet) as run:
        wait([run])
        assert READY in run.text(), run.text()
        assert stand_in_cluster.gpus_free() == 0
        assert run.stop() == 0, run.text()
    assert stand_in_cluster.gpus_free() == 4


def test_an_engine_that_takes_other_gpus_than_planned_has_failed(stand_in_cluster: JoinedRay, tmp_path: Path) -> None:
    more = "++left.responses_api_models.local_vllm_model.vllm_serve_env_vars.VLLM_STAND_IN_TAKES_MORE=1"
    with racers(stand_in_cluster, tmp_path, 2, ["left"], more) as (run,):
        wait([run])
        assert run.process.returncode == 1
        assert re.search(r"planned on \S+ \(2 GPUs\), but Ray placed it on \S+ \(3 GPUs\)", run.text()), run.text()
    assert until(lambda: stand_in_cluster.gpus_free() == 4, 15)


def test_a_killed_run_gives_its_gpus_and_names_back_to_the_cluster(stand_in_cluster: JoinedRay, tmp_path: Path) -> None:
    with racers(stand_in_cluster, tmp_path, size=4, names=["left"]) as (run,):
        wait([run])
        assert READY in run.text(), run.text()
        run.process.kill()
        run.process.wait(5)
        assert until(lambda: stand_in_cluster.gpus_free() == 4, 30)
        assert until(lambda: stand_in_cluster.named_actors() == "[]", 60), stand_in_cluster.named_actors()
