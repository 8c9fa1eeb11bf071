"""A real engine on a model that a real run has fetched: vLLM itself needs nobody but the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from ng_run_process import NgRun, running, until
from stand_in_hub import StandInHub

from local_vllm.cluster.machine import gpu_count

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(gpu_count() > 0, reason="these tests count logical GPUs; this machine has real ones"),
]

TINY = "tiny-org/tiny-model"
SETTINGS = "++policy_model.local_vllm_model"


def test_a_model_is_fetched_and_served_and_the_next_start_needs_no_hub(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    words = (f"{SETTINGS}.model={TINY}", f"{SETTINGS}.hf_home={tmp_path / 'hf'}")
    with running(tmp_path, *words) as run:
        assert f"policy_model: fetching {TINY}: " in run.text()
        assert [model.id for model in run.client().models.list()] == [TINY]
        answer = run.client().responses.create(model=TINY, input="ECHO:from the Hub")
        assert answer.output_text == "from the Hub"
        listings = [request for request in hub.requests if "/api/models/" in request]
        commit = hub.repositories[TINY].commit
        assert listings == [f"GET /api/models/{TINY}", f"GET /api/models/{TINY}/tree/{commit}"], (
            "vLLM asks for nothing"
        )
        assert hub.bytes_of["model.safetensors"] == len(hub.repositories[TINY].files["model.safetensors"])
        assert run.stop() == 0
    hub.stop()
    with running(tmp_path, *words) as run:
        assert f"using what is cached: {hub.url} cannot be reached" in run.text()
        assert (
            run.client().responses.create(model=TINY, input="ECHO:from the disk").output_text
            == "from the disk"
        )
        assert run.stop() == 0
        assert run.leftovers() == []


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
