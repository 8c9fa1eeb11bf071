"""What ends a collection that cannot go on: at once, in one sentence, and so that it can be resumed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from collected_here import Collect, failed
from collector_process import AgentProcess, row, written
from rich.console import Console
from stand_in_agent import AGENT, StandInAgent

from local_vllm.cli.collect import run as ng_collect_rollouts
from local_vllm.errors import RunError
from local_vllm.rollouts.collect import Deadlines
from local_vllm.rollouts.files import Paths

NOBODY = {
    "a wrong key": ({"status": 401}, "/weather_agent/run wants another key, of its own or of the models behind it"),
    "a path that takes no POST": ({"status": 405}, "`weather_agent` is no agent, since there is nothing to roll out"),
}


@pytest.mark.parametrize(("how", "told"), NOBODY.values(), ids=NOBODY)
async def test_a_refusal_of_every_rollout_ends_the_collection_and_is_no_failure_of_a_row(
    agent: StandInAgent, collect: Collect, output: Path, how: dict[str, Any], told: str
) -> None:
    rows = [row(i, behave=[how, {}] if i == 3 else None) for i in range(100)]
    with pytest.raises(RunError, match=told):
        await collect(rows, concurrency=1)
    assert (len(written(output)), failed(output)) == (3, [])

    assert (await collect(rows, resume=True, concurrency=1)).done == 100


async def test_a_server_that_is_well_and_no_agent_ends_the_collection(collect: Collect, output: Path) -> None:
    with pytest.raises(RunError, match="`model_server` is no agent, .* Nothing is at /run."):
        await collect([row(i) for i in range(100)], agent_name="model_server")
    assert failed(output) == []


async def test_a_404_of_what_a_row_names_is_a_failure_of_that_row(collect: Collect, output: Path) -> None:
    summary = await collect([row(0), row(1, behave=[{"status": 404}]), row(2)])

    assert (summary.done, summary.failures) == (2, {"rejected": 1})


async def test_an_answer_that_is_nested_too_deeply_is_a_failure_of_its_row(collect: Collect, output: Path) -> None:
    deep = "[" * 50_000 + "]" * 50_000
    body = '{"responses_create_params": {}, "response": {}, "reward": 1, "x": %s}' % deep
    summary = await collect([row(0), row(1, behave=[{"body": body}])])

    assert (summary.done, summary.failures) == (1, {"invalid_answer": 1})


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_when_the_output_cannot_be_written_what_is_in_flight_is_not_waited_for(
    agent: StandInAgent, collect: Collect, monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    rows = [row(i, delay_s=1 if i == 0 else 60) for i in range(20)]
    collecting = asyncio.create_task(collect(rows))
    while not agent.in_flight:
        await asyncio.sleep(0.01)
    if is_stopped:
        collecting.cancel()
    with pytest.raises(RunError, match="cannot be written: No space left on device"):
        async with asyncio.timeout(10):
            await asyncio.shield(collecting)


async def test_after_an_outage_without_end_what_is_in_flight_has_its_grace(
    agent: StandInAgent, collect: Collect, console: Console
) -> None:
    rows = [row(i, delay_s=60 if i == 0 else 0.02) for i in range(100)]
    collecting = asyncio.create_task(collect(rows, deadlines=Deadlines(outage_s=0.3, grace_s=0.3), concurrency=2))
    await asyncio.sleep(0.2)
    agent.down = True

    assert (await asyncio.wait_for(collecting, 10)).not_begun > 0
    assert "Stopping: 1 rollouts in flight get up to 0 s." in console.file.getvalue()


@pytest.mark.parametrize("name", ["failures", "summary", "collection"])
def test_a_file_that_cannot_be_written_is_told_in_one_sentence(
    served: AgentProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "r0", "responses_create_params": {}, "behave": [{"status": 400}]}\n')
    paths = Paths(tmp_path / "o.jsonl")
    getattr(paths, name).mkdir()
    words = [f"+agent_name={AGENT}", f"+http_port={served.port}", f"+input_jsonl_fpath={rows}"]

    assert ng_collect_rollouts([*words, f"+output_jsonl_fpath={paths.output}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ng_collect_rollouts: ") and said.count("\n") == 1 and "cannot be written" in said
