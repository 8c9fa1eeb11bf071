"""The engine whose model the run has fetched: vLLM itself asks nobody for it."""

from __future__ import annotations

import pytest
from ng_run_process import NgRun
from stand_in_hub import StandInHub

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def test_a_model_is_fetched_once_and_served_by_its_name_on_the_hub(run: NgRun, hub: StandInHub) -> None:
    ((model, repository),) = hub.repositories.items()
    assert f"judge_model: fetching {model}: " in run.text()
    assert [served.id for served in run.client("judge_model").models.list()] == [model]
    answer = run.client("judge_model").responses.create(model=model, input="ECHO:from the Hub")
    assert answer.output_text == "from the Hub"
    listings = [request for request in hub.requests if "/api/models/" in request]
    by_us = [f"GET /api/models/{model}", f"GET /api/models/{model}/tree/{repository.commit}"]
    assert listings == by_us, "vLLM asks for nothing"
    assert hub.bytes_of["model.safetensors"] == len(repository.files["model.safetensors"])
