"""A collection that is paused for an agent that is down, or stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from collected_here import Collect, failed, said
from collector_process import row, times_written, written
from rich.console import Console
from stand_in_agent import AGENT, StandInAgent

from local_vllm.errors import RunError
from local_vllm.rollouts.collect import Deadlines


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
