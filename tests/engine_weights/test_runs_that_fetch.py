"""Runs whose engine has to have its model first. tests/engine_api has one that has fetched it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import snapshot_download
from ng_run_process import NgRun, until
from stand_in_hub import StandInHub

from local_vllm.cluster.machine import gpu_count

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(gpu_count() > 0, reason="these tests count logical GPUs; this machine has real ones"),
]

TINY = "tiny-org/tiny-model"
SETTINGS = "++policy_model.local_vllm_model"


def test_a_model_that_is_there_needs_no_hub(hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    home = tmp_path / "hf"
    snapshot_download(TINY, cache_dir=home / "hub", endpoint=hub.url)
    hub.stop()
    run = NgRun((f"{SETTINGS}.model={TINY}", f"{SETTINGS}.hf_home={home}"), tmp_path)
    try:
        cached = f"using what is cached: {hub.url} cannot be reached"
        assert until(lambda: cached in run.text() and run.named("vllm.entrypoints"), 120), run.text()
        assert run.stop() == 0
        assert run.leftovers() == []
    finally:
        run.end()


def test_ctrl_c_ends_a_run_in_the_middle_of_a_download(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.faults.bytes_per_s = 50_000
    run = NgRun((f"{SETTINGS}.model={TINY}", f"{SETTINGS}.hf_home={tmp_path / 'hf'}"), tmp_path)
    try:
        assert until(lambda: hub.bytes_served > 200_000 or run.process.poll() is not None, 120), run.text()
        assert run.stop() == 0, run.text()
        served = hub.bytes_served
        assert not until(lambda: hub.bytes_served > served, 1)
        assert run.leftovers() == []
    finally:
        run.process.kill()
