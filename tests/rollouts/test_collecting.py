"""A collection in this process: what is sent, tried again, paused for, stopped, and written."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from collector_process import row, times_written, write_rows, written
from rich.console import Console
from stand_in_agent import AGENT, StandInAgent

from local_vllm.errors import RunError
from local_vllm.rollouts import failures
from local_vllm.rollouts.collect import Asked, Collector, Deadlines, tally_to_begin_with
from local_vllm.rollouts.failures import PATIENCE, Failure, Patience
from local_vllm.rollouts.files import Paths, held
from local_vllm.rollouts.rows import checked_input
from local_vllm.rollouts.summary import Summary

Collect = Callable[..., Awaitable[Summary]]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number of attempts, with hardly a wait between them."""
    shortened = {failure: Patience(p.attempts, 0.01, p.budgeted) for failure, p in PATIENCE.items()}
    monkeypatch.setattr(failures, "PATIENCE", shortened)
    monkeypatch.setattr(failures, "LONGEST_WAIT_S", 0.05)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "rollouts.jsonl"


@pytest.fixture
def collect(agent: StandInAgent, tmp_path: Path, output: Path, console: Console) -> Collect:
    async def collected(rows: list[dict[str, Any]], **more: Any) -> Summary:
        deadlines, shown = more.pop("deadlines", Deadlines()), more.pop("console", console)
        named, resume, limit = more.pop("agent_name", AGENT), more.pop("resume", False), more.pop("limit", None)
        file = write_rows(tmp_path / "rows.jsonl", rows)
        with held(Paths(output)) as collection:
            then = collection.identity.rows if collection.identity else 0
            read = checked_input(file, limit=limit, agent=named, earlier_rows=then)
            values = {"num_repeats": 1, "concurrency": 20, "responses_create_params": {}} | more
            asked = Asked(read, named, **values)
            tally = tally_to_begin_with(asked, collection, resume, console.print)
            return await Collector(asked, collection, tally, shown, deadlines).collect(lambda name: f"{agent.url}/{name}")

    return collected


def failed(output: Path) -> list[dict[str, Any]]:
    path = Paths(output).failures
    return written(path) if path.exists() else []


def said(console: Console) -> str:
    return console.file.getvalue()


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


async def test_nothing_new_is_begun_while_an_agent_is_down(agent: StandInAgent, collect: Collect) -> None:
    rows = [row(i, delay_s=0.5 if i < 9 else 0.02) for i in range(100)]
    collecting = asyncio.create_task(collect(rows, concurrency=10))
    await asyncio.sleep(0.3)
    agent.down = True
    await asyncio.sleep(0.6)
    # One has found it out; the nine that have finished since have begun nothing.
    assert agent.calls_while_down == 1
    agent.down = False

    assert (await collecting).done == 100


async def test_stopped_during_a_pause_nothing_is_a_failure(agent: StandInAgent, collect: Collect) -> None:
    collecting = asyncio.create_task(collect([row(i, delay_s=0.02) for i in range(100)], concurrency=5))
    await asyncio.sleep(0.3)
    agent.down = True
    await asyncio.sleep(0.3)
    collecting.cancel()
    summary = await asyncio.wait_for(collecting, 5)

    assert summary.failed == 0 and summary.not_begun > 0


async def test_an_agent_that_is_down_is_waited_for_and_not_asked_meanwhile(
    agent: StandInAgent, collect: Collect, output: Path, console: Console
) -> None:
    collecting = asyncio.create_task(collect([row(i, delay_s=0.02) for i in range(200)]))
    while not output.exists() or len(written(output)) < 40:
        await asyncio.sleep(0.01)
    agent.down = True
    await asyncio.sleep(2.5)
    calls, looks = agent.calls_while_down, agent.looks
    agent.down = False
    summary = await collecting

    # Each of those in flight found it out for itself at most; then only its health was looked at.
    assert 0 < calls <= 20 and looks <= 5
    assert (summary.done, summary.failed) == (200, 0)
    assert set(times_written(output).values()) == {1}
    assert {line["_ng_attempt"] for line in written(output)} == {1}
    assert summary.session.paused_s > 1
    assert f"Paused: {AGENT} cannot answer" in said(console) and "waiting up to 30 min" in said(console)
    assert f"Going on: {AGENT} answers again" in said(console)


async def test_after_the_deadline_of_an_outage_the_collection_ends_and_can_be_resumed(
    agent: StandInAgent, collect: Collect, output: Path, console: Console
) -> None:
    rows = [row(i, delay_s=0.02) for i in range(100)]
    collecting = asyncio.create_task(collect(rows, deadlines=Deadlines(outage_s=0.5)))
    while not output.exists() or len(written(output)) < 20:
        await asyncio.sleep(0.01)
    agent.down = True
    summary = await collecting

    assert 0 < summary.failures["engine_down"] <= 20
    assert summary.not_begun > 0 and not summary.is_complete
    assert {entry["class"] for entry in failed(output)} == {"engine_down"}

    agent.down = False
    again = await collect(rows, resume=True)
    assert (again.done, again.failed) == (100, 0)
    assert set(times_written(output).values()) == {1} and not failed(output)


async def test_an_agent_that_is_not_up_yet_is_waited_for_at_the_start(agent: StandInAgent, collect: Collect) -> None:
    agent.down = True
    collecting = asyncio.create_task(collect([row(0)]))
    await asyncio.sleep(0.3)
    agent.down = False

    assert (await collecting).done == 1


async def test_an_agent_that_is_not_there_ends_the_command_before_anything_is_written(
    collect: Collect, output: Path
) -> None:
    with pytest.raises(RunError, match="there is no agent `unknown_agent` where it was looked for"):
        await collect([row(0)], agent_name="unknown_agent")
    assert list(output.parent.iterdir()) == []


async def test_stopped_once_what_is_in_flight_is_finished_and_nothing_else_begun(
    agent: StandInAgent, collect: Collect, output: Path, console: Console
) -> None:
    collecting = asyncio.create_task(collect([row(i, delay_s=0.5) for i in range(100)], concurrency=10))
    while not agent.in_flight:
        await asyncio.sleep(0.01)
    collecting.cancel()
    summary = await collecting

    assert (summary.done, summary.not_begun) == (10, 90)
    assert len(written(output)) == 10
    assert "Stopping: 10 rollouts in flight" in said(console)


async def test_stopped_twice_what_is_in_flight_is_cut_off_and_no_failure(
    agent: StandInAgent, collect: Collect, output: Path
) -> None:
    rows = [row(i, delay_s=0.0 if i < 3 else 60) for i in range(20)]
    collecting = asyncio.create_task(collect(rows, concurrency=5))
    while agent.in_flight < 5 or not output.exists() or len(written(output)) < 3:
        await asyncio.sleep(0.01)
    for _ in range(2):
        collecting.cancel()
        await asyncio.sleep(0.05)
    summary = await asyncio.wait_for(collecting, 5)

    assert (summary.done, summary.failed, summary.not_begun) == (3, 0, 17)


async def test_the_grace_of_a_stop_has_an_end(agent: StandInAgent, collect: Collect) -> None:
    collecting = asyncio.create_task(collect([row(0, delay_s=60)], deadlines=Deadlines(grace_s=0.2)))
    while not agent.in_flight:
        await asyncio.sleep(0.01)
    collecting.cancel()

    assert (await asyncio.wait_for(collecting, 5)).not_begun == 1


async def test_a_resume_does_what_is_missing_and_what_had_failed(
    agent: StandInAgent, collect: Collect, output: Path
) -> None:
    rows = [row(i, behave=[{"status": 400}, {}] if i == 2 else [{}]) for i in range(4)]
    first = await collect(rows, limit=3)
    second = await collect(rows, resume=True)

    assert (first.done, first.failed) == (2, 1)
    assert (second.done, second.failed, second.session.done) == (4, 0, 2)
    assert set(times_written(output)) == {(i, 0) for i in range(4)}
    assert agent.asked == {"r0": 1, "r1": 1, "r2": 2, "r3": 1}
    assert not failed(output)


async def test_more_repeats_extend_what_is_there(collect: Collect, output: Path) -> None:
    rows = [row(i, expected_reward=float(i)) for i in range(2)]
    await collect(rows, num_repeats=1)
    summary = await collect(rows, num_repeats=4, resume=True)

    assert times_written(output) == {(task, number): 1 for task in range(2) for number in range(4)}
    assert (summary.session.done, summary.pass_at_k) == (6, {1: 0.5, 2: 0.5, 4: 0.5})


async def test_a_resume_with_nothing_to_resume_starts_fresh(collect: Collect) -> None:
    assert (await collect([row(0)], resume=True)).done == 1


async def test_without_a_resume_what_is_there_is_moved_aside_whole(
    collect: Collect, output: Path, console: Console
) -> None:
    await collect([row(0), row(1, behave=[{"status": 400}])])
    before = output.read_bytes()
    await collect([row(5)])

    [aside] = [path for path in output.parent.glob("rollouts.*-*.jsonl") if path.name.count(".jsonl") == 1]
    assert aside.read_bytes() == before
    assert len(written(Paths(aside).failures)) == 1
    assert json.loads(Paths(aside).summary.read_text())["failed"] == 1
    assert json.loads(Paths(aside).collection.read_text())["identity"]["rows"] == 2
    assert [line["id"] for line in written(output)] == ["r5"]
    assert "was there already; it is now" in said(console)


async def test_beside_the_output_there_is_nothing_but_its_sidecars(collect: Collect, output: Path) -> None:
    await collect([row(0), row(1, behave=[{"status": 400}])])

    names = ["", ".collection.json", ".failures.jsonl", ".summary.json"]
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name + name for name in names]


async def test_a_disk_that_is_full_ends_the_collection_with_whole_lines(
    collect: Collect, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, begun = os.write, iter(range(100))

    def until_it_is_full(fd: int, data: bytes) -> int:
        """Room for three lines and a bit of a fourth."""
        place = next(begun)
        if place > 3:
            raise OSError(28, "No space left on device")
        return write(fd, data[:10] if place == 3 else data)

    monkeypatch.setattr(os, "write", until_it_is_full)
    with pytest.raises(RunError, match="cannot be written: No space left on device"):
        await collect([row(i) for i in range(10)], concurrency=2)
    assert len(written(output)) == 3


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
