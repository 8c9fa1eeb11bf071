"""An engine with data and pipeline parallelism on one node: the same answers, the same token ids, and nothing left after.
Tensor parallelism is in tests/multinode.
"""

from __future__ import annotations

import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine_answers import SERVER, check_reasoning, check_text, check_token_ids, check_tool_call, engine_url
from ng_run_process import KEY, NgRun, running, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

RUNNING = "vllm:num_requests_running{"
# Enough to go on for some seconds.
MANY_WORDS = 60

NAME = "dp2_pp2"
# Without vLLM's reasoning parser: the reasoning is then found in the text.
FLAGS = {
    "data_parallel_size": 2,
    "pipeline_parallel_size": 2,
    "reasoning_parser": "null",
    "default_chat_template_kwargs": "{plain_answers: true}",
}


def test_an_engine_with_data_and_pipeline_parallelism_ends_in_peace_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "engine.yaml").write_text(SERVER.format(name=NAME, key=KEY, size=1))
    kwargs = f"++{NAME}.responses_api_models.local_vllm_model.vllm_serve_kwargs"
    words = [f"{kwargs}.{flag}={value}" for flag, value in FLAGS.items()]
    with running(tmp_path, "+config_paths=[engine.yaml]", "+logical_gpus=6", *words) as run:
        assert run.free_gpus_and_groups() == (2, 2), "each data-parallel rank has a placement group of its own"
        client = run.client(NAME)
        check_text(client)
        check_tool_call(client)
        check_reasoning(client)
        check_token_ids(client, engine_url(run, NAME))
        assert KEY not in run.text()
        assert not any(KEY in " ".join(process.cmdline()) for process in run.processes())
        run.let_others_go_before_engines()
        with ThreadPoolExecutor(1) as pool:
            long_answer = pool.submit(client.responses.create, model="local-vllm-default", input=f"REPEAT:{MANY_WORDS}")
            assert until(lambda: requests_running(run, NAME) > 0, 20)
            assert run.stop(signal.SIGTERM, deadline_s=150) == 0
        assert "Waiting for requests in flight: 1." in run.text()
        assert len(long_answer.result().output_text.split()) == MANY_WORDS, "what was in flight has ended in peace"
        assert run.leftovers() == []


def requests_running(run: NgRun, server: str) -> int:
    """What vLLM itself counts."""
    metrics = urllib.request.urlopen(engine_url(run, server).removesuffix("/v1") + "/metrics", timeout=10).read()
    return sum(int(float(line.split()[-1])) for line in metrics.decode().splitlines() if line.startswith(RUNNING))
