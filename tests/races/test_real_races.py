"""Two runs with real engines, started at the same moment on one Ray cluster. Long: scripts/races runs it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from engine_answers import check_text
from joined_ray import joined_ray
from ng_run_process import READY
from racing_runs import racers, wait

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

RACES = int(os.environ.get("LOCAL_VLLM_REAL_RACES", "2"))


@pytest.mark.parametrize("race", range(RACES))
def test_real_engines_that_race_for_a_cluster_both_answer(tmp_path: Path, race: int) -> None:
    with joined_ray(2) as cluster:
        with racers(cluster, tmp_path, size=1) as runs:
            wait(runs)
            for run, name in zip(runs, ("left", "right"), strict=True):
                assert READY in run.text(), run.text()
                check_text(run.client(name))
            assert cluster.gpus_free() == 0
            assert [run.stop() for run in runs] == [0, 0]
        assert cluster.gpus_free() == 2
