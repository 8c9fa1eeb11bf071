"""Rollouts from end to end: the collector, an agent with its environment, a real engine, and a real judge.

What a small model is worth in an environment is not the question here: that every row comes back whole is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from engine_answers import engine_url
from ng_run_process import KEY, NgRun

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

COMMANDS = Path(sys.executable).parent
WITH_TOOLS = ("simple_weather", "example_multi_step", "multineedle")
CONCURRENT = 100


def collect(run: NgRun, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`ng_collect_rollouts` against the servers of the run, as somebody in `folder` would call it."""
    return subprocess.run(
        [COMMANDS / "ng_collect_rollouts", f"+http_port={run.port}", *words],
        cwd=folder,
        env=os.environ | {"XDG_STATE_HOME": str(run.state)},
        capture_output=True,
        text=True,
        timeout=500,
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def succeeded(run: NgRun, server: str) -> float:
    """How many requests an engine has answered, as vLLM counts them."""
    url = engine_url(run, server).removesuffix("/v1") + "/metrics"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))


@pytest.mark.parametrize("name", ["simple_weather", "example_multi_step", "multineedle", "simple_task"])
def test_a_shipped_environment_collects_its_rows(run: NgRun, tmp_path: Path, name: str) -> None:
    done = collect(
        run,
        tmp_path,
        f"+agent_name={name}_simple_agent",
        f"+input_jsonl_fpath=resources_servers/{name}/data/example.jsonl",
        "+output_jsonl_fpath=results/rollouts.jsonl",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rollouts = rows_of(tmp_path / "results/rollouts.jsonl")
    assert sorted(row["_ng_task_index"] for row in rollouts) == [0, 1, 2, 3, 4]
    assert all(0 <= row["reward"] <= 1 for row in rollouts)
    assert all(row["_ng_tokens"]["output"] == row["response"]["usage"]["output_tokens"] > 0 for row in rollouts)
    answered = [{item["type"] for item in row["response"]["output"]} for row in rollouts]
    assert all(("function_call_output" in types) is (name in WITH_TOOLS) for types in answered)
    if name == "simple_weather":
        # The model calls the tool with the city of the question, and says what it answered.
        assert sum(row["reward"] for row in rollouts) >= 4


def test_the_verdict_of_a_judge_on_an_engine_of_its_own_is_the_reward(run: NgRun, tmp_path: Path) -> None:
    verdicts = ["[[A=B]]", "[[A!=B]]", "[[A=B]]"]
    write_rows(
        tmp_path / "rows.jsonl",
        [
            {"responses_create_params": {"input": f"ECHO:answer {number}"}, "expected_answer": verdict}
            for number, verdict in enumerate(verdicts)
        ],
    )
    before = succeeded(run, "judge_model")
    done = collect(
        run,
        tmp_path,
        "+agent_name=equivalence_llm_judge_simple_agent",
        "+input_jsonl_fpath=rows.jsonl",
        "+output_jsonl_fpath=rollouts.jsonl",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rollouts = sorted(rows_of(tmp_path / "rollouts.jsonl"), key=lambda row: row["_ng_task_index"])
    assert [row["reward"] for row in rollouts] == [1.0, 0.0, 1.0]
    assert [row["verdict"] for row in rollouts] == ["equal", "not_equal", "equal"]
    # A canary of the watcher may be among them.
    assert succeeded(run, "judge_model") - before in (3, 4)


def test_two_hundred_rollouts_of_three_turns_are_all_there(run: NgRun, tmp_path: Path) -> None:
    call = '{"name": "get_weather", "arguments": {"city": "%s"}}'
    asked = f"STEPS:CALL:{call % 'Oslo'}||CALL:{call % 'Rome'}||ECHO:done"
    row = {"responses_create_params": {"input": asked}, "expected_cities": ["Oslo", "Rome"]}
    write_rows(tmp_path / "rows.jsonl", [row] * 50)
    done = collect(
        run,
        tmp_path,
        "+agent_name=simple_weather_simple_agent",
        "+input_jsonl_fpath=rows.jsonl",
        "+output_jsonl_fpath=rollouts.jsonl",
        "+num_repeats=4",
        f"+concurrency={CONCURRENT}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rollouts = rows_of(tmp_path / "rollouts.jsonl")
    indices = {(row["_ng_task_index"], row["_ng_rollout_index"]) for row in rollouts}
    assert indices == {(task, repeat) for task in range(50) for repeat in range(4)}
    assert len(rollouts) == 200
    for row in rollouts:
        types = [item["type"] for item in row["response"]["output"]]
        assert types == ["function_call", "function_call_output"] * 2 + ["message"]


def test_ng_call_prints_what_an_agent_and_a_model_say(run: NgRun, tmp_path: Path) -> None:
    for name, text, told in (
        ("simple_weather_simple_agent", "What is the weather in Paris?", "The tool answered"),
        ("policy_model", "ECHO:hello there", "hello there"),
    ):
        done = subprocess.run(
            [COMMANDS / "ng_call", f"+http_port={run.port}", f"+agent_name={name}", text],
            env=os.environ | {"XDG_STATE_HOME": str(run.state)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert told in done.stdout
