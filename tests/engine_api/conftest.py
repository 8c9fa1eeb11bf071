"""One real engine behind the whole path (HAProxy, Serve, gateway or server), shared by all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_answers import SERVER
from ng_run_process import KEY, NgRun, running

# What Codex sends before the first word of its user is longer than the context of the other tests' engines.
CONTEXT = "++policy_model.responses_api_models.local_vllm_model.vllm_serve_kwargs.max_model_len=16384"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NgRun]:
    folder = tmp_path_factory.mktemp("engine")
    (folder / "policy_model.yaml").write_text(SERVER.format(name="policy_model", key=KEY, size=1))
    with running(folder, "+config_paths=[policy_model.yaml]", CONTEXT) as started:
        started.keep_a_cpu_free_of_engines()
        yield started
