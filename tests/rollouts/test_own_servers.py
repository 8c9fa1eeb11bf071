"""A collection that brings its servers up itself: a real Ray, Serve and agent, over a stand-in engine."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from collector_process import NG_COLLECT_ROLLOUTS, AgentProcess, until_lines, written

from local_vllm.cluster.machine import free_ports, is_port_free
from local_vllm.rollouts.files import Paths
from local_vllm.runs.record import records

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

AGENT = "simple_weather_simple_agent"
FILES = "resources_servers/simple_weather/configs/simple_weather.yaml,responses_api_models/vllm_model/configs/vllm_model.yaml"


@pytest.fixture
def words(served: AgentProcess, tmp_path: Path) -> list[str]:
    return [
        str(NG_COLLECT_ROLLOUTS), f"+config_paths=[{FILES}]", f"+policy_base_url=http://127.0.0.1:{served.port}/v1",
        "+policy_api_key=EMPTY", "+policy_model_name=stand-in", f"+agent_name={AGENT}", f"++http_port={free_ports(1)[0]}",
        "+input_jsonl_fpath=resources_servers/simple_weather/data/example.jsonl",
        f"+output_jsonl_fpath={tmp_path / 'o.jsonl'}", "+concurrency=5",
    ]  # fmt: skip


def port_of(words: list[str]) -> int:
    return next(int(word.partition("=")[2]) for word in words if word.startswith("++http_port="))


def is_nothing_left(words: list[str], below: list[psutil.Process]) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and any(process.is_running() for process in below):
        time.sleep(0.2)
    return not records() and is_port_free("127.0.0.1", port_of(words)) and not any(p.is_running() for p in below)


def test_stopped_in_the_middle_what_is_done_is_kept_and_a_resume_brings_the_servers_up_again(
    words: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "o.jsonl"
    first = subprocess.Popen([*words, "+num_repeats=40"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until_lines(first, output, 10)
    below = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=120)[0]

    assert first.returncode == 1, said
    assert "Stopping: 5 rollouts in flight" in said and "rollouts are not done yet" in said
    assert below and is_nothing_left(words, below)
    done = len(written(output))
    assert 10 <= done < 200 and json.loads(Paths(output).summary.read_text())["done"] == done

    second = subprocess.run(
        [*words, "+num_repeats=40", "+resume_from_cache=true"], capture_output=True, text=True, timeout=300
    )
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"Going on: {done} of 200 rollouts are done already." in second.stdout
    assert len({(line["_ng_task_index"], line["_ng_rollout_index"]) for line in written(output)}) == 200
    assert written(output)[0]["_ng_engine"] == {"agent": AGENT, "model_server": "policy_model"}
    assert is_nothing_left(words, [])
