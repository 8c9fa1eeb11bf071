"""A collection in this process: what is sent, tried again, written, and shown."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collected_here import Collect, failed, said
from collector_process import row, times_written, written
from rich.console import Console
from stand_in_agent import AGENT, StandInAgent

from local_vllm.rollouts.failures import Failure


async def test_a_line_has_the_row_the_answer_and_what_the_collector_knows(collect: Collect, output: Path) -> None:
    await collect([row(0, kept={"nested": [1, 2.0]}, expected_reward=0.25)])

    [line] = written(output)
    assert line["kept"] == {"nested": [1, 2.0]} and line["id"] == "r0"
    assert line["responses_create_params"]["temperature"] == 0.5
    assert line["response"]["usage"]["output_tokens"] == 7
    assert (line["reward"], line["verdict"]) == (0.25, "checked")
    assert (line["_ng_task_index"], line["_ng_rollout_index"], line["_ng_attempt"]) == (0, 0, 1)
    assert line["_ng_tokens"] == {"input": 11, "output": 7}
    assert line["_ng_engine"] == {"agent": AGENT, "model_server": "policy_model"}
    timings = line["_ng_timings"]
    assert (timings["model_s"], timings["tools_s"], timings["verify_s"]) == (0.8121, 0.003, 0.0004)
    assert timings["total_s"] > 0


async def test_no_more_rollouts_are_in_flight_than_asked_for(agent: StandInAgent, collect: Collect) -> None:
    await collect([row(i, delay_s=0.01) for i in range(100)], concurrency=7)

    assert agent.most_in_flight == 7


async def test_rollouts_of_a_row_are_next_to_each_other(agent: StandInAgent, collect: Collect, output: Path) -> None:
    agent.keep_bodies = True
    await collect([row(i) for i in range(5)], num_repeats=3, concurrency=1)

    assert [body["id"] for body in agent.bodies] == [f"r{i}" for i in range(5) for _ in range(3)]
    assert list(times_written(output)) == [(task, number) for task in range(5) for number in range(3)]


async def test_each_row_goes_to_the_agent_that_it_names(collect: Collect, output: Path) -> None:
    rows = [row(i, agent_ref={"type": "responses_api_agents", "name": f"agent_{i % 2}"}) for i in range(4)]
    rows[3]["expected_reward"] = 0.0
    summary = await collect(rows, agent_name=None)

    assert {line["id"]: line["_ng_engine"]["agent"] for line in written(output)} == {
        "r0": "agent_0", "r1": "agent_1", "r2": "agent_0", "r3": "agent_1",
    }  # fmt: skip
    assert {name: agent.mean_reward for name, agent in summary.agents.items()} == {"agent_0": 1.0, "agent_1": 0.5}


async def test_request_fields_of_the_command_line_beat_those_of_the_row(
    agent: StandInAgent, collect: Collect, output: Path
) -> None:
    agent.keep_bodies = True
    mine = row(0)
    mine["responses_create_params"] |= {"metadata": {"mine": "1"}}
    await collect([mine], responses_create_params={"temperature": 0.9, "metadata": {"yours": "2"}})

    sent = agent.bodies[0]["responses_create_params"]
    assert (sent["temperature"], sent["metadata"]) == (0.9, {"mine": "1", "yours": "2"})
    assert sent["input"] == mine["responses_create_params"]["input"]
    assert written(output)[0]["responses_create_params"] == sent


@pytest.fixture(params=["status", "broken connection", "no rollout"])
def passing_failure(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {
        "status": {"status": 500},
        "broken connection": {"drop": True},
        "no rollout": {"body": '{"responses_create_params": {}, "response": {}, "reward": null}'},
    }[request.param]


async def test_a_failure_that_passes_is_tried_again(
    collect: Collect, output: Path, passing_failure: dict[str, Any]
) -> None:
    summary = await collect([row(0, behave=[passing_failure, {}])])

    assert (summary.done, summary.failed) == (1, 0)
    assert sum(summary.session.retries.values()) == 1
    assert written(output)[0]["_ng_attempt"] == 2
    assert not failed(output)


FINAL = {
    "a bad row": ({"status": 400}, Failure.REJECTED, 1),
    "a row that is too long": ({"status": 413}, Failure.REJECTED, 1),
    "a bug in the environment": ({"status": 500}, Failure.ENVIRONMENT_ERROR, 3),
    "an engine that breaks": ({"status": 502}, Failure.UPSTREAM_ERROR, 4),
    "too many requests": ({"status": 429}, Failure.OVERLOADED, 10),
    "an answer without a reward": ({"body": '{"response": {}}'}, Failure.INVALID_ANSWER, 3),
    "a broken connection": ({"drop": True}, Failure.CONNECTION_LOST, 4),
    "a health that is good, and 503": ({"status": 503}, Failure.UNAVAILABLE, 10),
}


@pytest.mark.parametrize(("how", "failure", "attempts"), FINAL.values(), ids=FINAL)
async def test_a_failure_that_stays_is_recorded_and_the_others_go_on(
    agent: StandInAgent, collect: Collect, output: Path, how: dict[str, Any], failure: Failure, attempts: int
) -> None:
    summary = await collect([row(0), row(1, behave=[how]), row(2)], num_repeats=1)

    [entry] = failed(output)
    assert agent.asked["r1"] == attempts
    assert (entry["class"], entry["_ng_attempt"], entry["_ng_task_index"]) == (failure, attempts, 1)
    assert entry["message"] and entry["when"] and entry["agent"] == AGENT
    assert sorted(line["id"] for line in written(output)) == ["r0", "r2"]
    assert (summary.done, summary.failed, summary.mean_reward) == (2, 1, 1.0)
    assert summary.failures == {failure.value: 1}


async def test_a_server_that_says_when_to_come_back_is_not_asked_before(agent: StandInAgent, collect: Collect) -> None:
    began = asyncio.get_running_loop().time()
    await collect([row(0, behave=[{"status": 429, "retry_after_s": 0.4}, {}])])

    assert asyncio.get_running_loop().time() - began >= 0.4


async def test_where_nearly_everything_fails_the_budget_ends_the_retries(agent: StandInAgent, collect: Collect) -> None:
    summary = await collect([row(i, behave=[{"status": 500}]) for i in range(300)])

    assert summary.failed == 300
    assert sum(agent.asked.values()) == 300 + 100


async def test_rollouts_that_succeed_earn_retries_for_others(agent: StandInAgent, collect: Collect) -> None:
    bad = [row(i, behave=[{"status": 500}]) for i in range(250)]
    good = [row(1000 + i) for i in range(40)]
    await collect([*bad[:150], *good, *bad[150:]], concurrency=1)

    assert sum(agent.asked.values()) == 250 + 100 + 40 // 2


async def test_the_plain_lines_tell_where_it_stands(
    collect: Collect, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    from local_vllm.rollouts import progress

    monkeypatch.setattr(progress, "LOOK_EACH_S", 0.05)
    monkeypatch.setattr(progress, "PLAIN_LINE_FIRST_S", 0.2)
    rows = [row(i, delay_s=0.1 if i < 10 else 0.6, behave=[{"status": 400}] if i == 0 else None) for i in range(20)]
    await collect(rows, concurrency=10)

    [line] = [line for line in said(console).splitlines() if "in flight" in line]
    assert line.startswith("9/20 done, 1 failed, 10 in flight, ")
    for words in ("rollouts/min", "tokens/s", "mean reward 1.000", " left"):
        assert words in line


async def test_on_a_terminal_one_line_is_drawn_again_and_again(collect: Collect, console: Console) -> None:
    terminal = Console(file=console.file, width=200, force_terminal=True, _environ={"TERM": "xterm"})
    await collect([row(i, delay_s=0.3) for i in range(20)], concurrency=5, console=terminal)

    assert "/20 done" in said(console) and "5 in flight" in said(console)
    assert "\x1b[" in said(console)


def test_iterator_of_rows_is_never_a_list(tmp_path: Path) -> None:
    from local_vllm.rollouts.rows import lines

    assert isinstance(lines(tmp_path / "none", 10**9), Iterator)
