"""A collection that goes on with an earlier one, or moves it aside; and its files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from collected_here import Collect, failed, said
from collector_process import row, times_written, written
from rich.console import Console
from stand_in_agent import StandInAgent

from local_vllm.errors import RunError
from local_vllm.rollouts.files import Paths


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
