"""The command as a process: killed, interrupted, refused, resumed; its exit status, and its memory."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest
from collector_process import (
    AgentProcess,
    collecting,
    command,
    kill_at,
    row,
    times_written,
    until_lines,
    write_rows,
    written,
)

from local_vllm.cli.collect import run
from local_vllm.rollouts.files import Paths

RESUME = "+resume_from_cache=true"
# The full length is that of scripts/collector-kills.
KILLED_ROLLOUTS = int(os.environ.get("LOCAL_VLLM_COLLECTOR_ROLLOUTS", "200"))
KILLS = int(os.environ.get("LOCAL_VLLM_COLLECTOR_KILLS", "3"))
MANY_ROWS = int(os.environ.get("LOCAL_VLLM_COLLECTOR_ROWS", "1500"))


Collect = Callable[..., CompletedProcess[str]]


@pytest.fixture
def collect(capsys: pytest.CaptureFixture[str]) -> Collect:
    """The command, run to its end in this process, which spares its start; its end is that of a process."""

    def collected(agent: AgentProcess, rows: Path, output: Path, *more: str) -> CompletedProcess[str]:
        words = command(agent, rows, output, *more)[1:]
        capsys.readouterr()
        return CompletedProcess(words, run(words), *capsys.readouterr())

    return collected


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "rollouts.jsonl"


def rows_of(tmp_path: Path, count: int, **more: Any) -> Path:
    return write_rows(tmp_path / "rows.jsonl", [row(i, **more) for i in range(count)])


def test_killed_at_random_moments_and_resumed_no_rollout_is_lost_and_none_is_there_twice(
    served: AgentProcess, collect: Collect, tmp_path: Path, output: Path
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    rows = rows_of(tmp_path, KILLED_ROLLOUTS, delay_s=0.02, padding="x" * 3000)
    for moment in sorted(chance.sample(range(KILLED_ROLLOUTS), KILLS)):
        with collecting(served, rows, output, "+concurrency=20", RESUME) as process:
            kill_at(process, output, moment, chance.uniform(0, 0.05))
            assert process.returncode == -signal.SIGKILL
    done = collect(served, rows, output, "+concurrency=20", RESUME)

    assert done.returncode == 0, done.stderr
    assert times_written(output) == {(task, 0): 1 for task in range(KILLED_ROLLOUTS)}
    summary = json.loads(Paths(output).summary.read_text())
    assert (summary["done"], summary["mean_reward"]) == (KILLED_ROLLOUTS, 1.0)
    assert summary["tokens"] == {"input": 11 * KILLED_ROLLOUTS, "output": 7 * KILLED_ROLLOUTS}


@pytest.mark.parametrize("torn", [b'{"id": "r7", "respo', b'{"id": "r7"' + b" " * (3 << 20)], ids=["short", "long"])
def test_a_torn_last_line_is_cut_off_and_its_rollout_done_again(
    served: AgentProcess, collect: Collect, tmp_path: Path, output: Path, torn: bytes
) -> None:
    rows = rows_of(tmp_path, 8)
    collect(served, rows, output, "+limit=7")
    with output.open("ab") as file:
        file.write(torn)
    done = collect(served, rows, output, RESUME)

    assert done.returncode == 0, done.stderr
    assert f"the last line was torn; its {len(torn)} bytes are cut off" in done.stdout
    assert times_written(output) == {(task, 0): 1 for task in range(8)}


def test_a_broken_line_in_the_middle_is_refused_with_its_number(
    served: AgentProcess, collect: Collect, tmp_path: Path, output: Path
) -> None:
    rows = rows_of(tmp_path, 3)
    collect(served, rows, output)
    lines = output.read_bytes().splitlines(keepends=True)
    for broken in (b"{}\n", b"[" * 50_000 + b"\n"):
        output.write_bytes(b"".join([lines[0], broken, *lines[1:]]))
        done = collect(served, rows, output, RESUME)

        assert done.returncode == 2
        assert f"{output}:2: is no rollout" in done.stderr


def test_a_second_collector_of_the_same_output_is_refused_with_the_pid_of_the_first(
    served: AgentProcess, collect: Collect, tmp_path: Path, output: Path
) -> None:
    rows = rows_of(tmp_path, 500, delay_s=0.3)
    with collecting(served, rows, output, "+concurrency=5") as first:
        until_lines(first, output, 1)
        second = collect(served, rows, output)
        assert first.poll() is None

    assert second.returncode == 1
    assert f"is being written by another ng_collect_rollouts (pid {first.pid} on " in second.stderr


def test_the_lock_of_a_dead_collector_is_taken_over(served: AgentProcess, collect: Collect, tmp_path: Path, output: Path) -> None:
    rows = rows_of(tmp_path, 10, delay_s=0.05)
    with collecting(served, rows, output, "+concurrency=2") as first:
        kill_at(first, output, 2, 0)

    assert collect(served, rows, output, RESUME).returncode == 0


CHANGES = {
    "num_repeats": (["+num_repeats=1"], "num_repeats: 2 then, 1 now"),
    "a field": (["+responses_create_params.top_p=0.5"], "responses_create_params.top_p: not set then, 0.5 now"),
    "fewer rows": (["+limit=3"], "the input: 4 rows of {rows} then, 3 of {rows} now"),
}


@pytest.mark.parametrize(("words", "difference"), CHANGES.values(), ids=CHANGES)
def test_a_resume_of_something_else_is_refused_with_the_difference(
    served: AgentProcess, collect: Collect, tmp_path: Path, output: Path, words: list[str], difference: str
) -> None:
    rows = rows_of(tmp_path, 5)
    collect(served, rows, output, "+num_repeats=2", "+limit=4")
    before = output.read_bytes()
    done = collect(served, rows, output, "+num_repeats=2", "+limit=4", *words, RESUME)

    assert done.returncode == 2
    assert difference.format(rows=rows) in done.stderr
    assert output.read_bytes() == before


def test_a_resume_with_another_agent_or_other_rows_is_refused(
    served: AgentProcess, collect: Collect, tmp_path: Path, output: Path
) -> None:
    rows = rows_of(tmp_path, 3)
    collect(served, rows, output)
    rows.write_text(rows.read_text().replace("city 1", "city 9"))
    done = collect(served, rows, output, "+agent_name=another_agent", RESUME)

    assert done.returncode == 2
    assert f"the input: the first 3 rows of {rows} are not those of {rows} then" in done.stderr
    assert "agent_name: weather_agent then, another_agent now" in done.stderr


def test_an_output_of_unknown_origin_is_not_resumed(served: AgentProcess, collect: Collect, tmp_path: Path, output: Path) -> None:
    rows = rows_of(tmp_path, 3)
    collect(served, rows, output)
    Paths(output).collection.unlink()

    done = collect(served, rows, output, RESUME)
    assert done.returncode == 2 and "does not say what" in done.stderr
    assert len(written(output)) == 3


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_what_is_in_flight_finish_and_says_how_to_go_on(
    served: AgentProcess, tmp_path: Path, output: Path, sig: signal.Signals
) -> None:
    rows = rows_of(tmp_path, 200, delay_s=0.2)
    with collecting(served, rows, output, "+concurrency=5") as process:
        until_lines(process, output, 10)
        process.send_signal(sig)
        said = process.communicate(timeout=20)[0]

    assert process.returncode == 1
    assert "Stopping: 5 rollouts in flight" in said
    assert "rollouts are not done yet; the same command with +resume_from_cache=true goes on." in said
    done = json.loads(Paths(output).summary.read_text())["done"]
    assert done == len(written(output)) and 10 <= done < 200


def test_a_pipe_that_nobody_reads_any_more_costs_neither_the_grace_nor_the_summary(
    served: AgentProcess, tmp_path: Path, output: Path
) -> None:
    rows = rows_of(tmp_path, 200, delay_s=0.2)
    words = command(served, rows, output, "+concurrency=5")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=tmp_path)
    try:
        until_lines(process, output, 10)
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 1
    finally:
        process.kill()
    done = json.loads(Paths(output).summary.read_text())["done"]
    assert done == len(written(output)) and 10 <= done < 200


def test_a_second_signal_cuts_what_is_in_flight_off(served: AgentProcess, tmp_path: Path, output: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [row(i, delay_s=0 if i < 3 else 100) for i in range(20)])
    with collecting(served, rows, output, "+concurrency=5") as process:
        until_lines(process, output, 3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[0]

    assert process.returncode == 1
    assert "Cut off: 5 rollouts in flight." in said and "17 rollouts are not done yet" in said
    assert len(written(output)) == 3


def test_sigint_is_heard_where_it_was_inherited_as_ignored(served: AgentProcess, tmp_path: Path, output: Path) -> None:
    rows = rows_of(tmp_path, 200, delay_s=0.2)
    words = command(served, rows, output, "+concurrency=5")
    process = subprocess.Popen(["bash", "-c", "trap '' INT; exec \"$@\"", "bash", *words], stdout=subprocess.PIPE, text=True)
    try:
        until_lines(process, output, 5)
        process.send_signal(signal.SIGINT)
        assert "Stopping" in process.communicate(timeout=20)[0]
    finally:
        process.kill()


def test_the_exit_status_tells_whether_some_rollouts_failed(
    served: AgentProcess, collect: Collect, tmp_path: Path, output: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [row(0), row(1, behave=[{"status": 400}])])
    done = collect(served, rows, output)

    assert done.returncode == 3
    assert "1 of 2 done, 1 failed" in done.stdout and "failed: rejected" in done.stdout
    assert f"Failures: {Paths(output).failures}" in done.stdout


def test_rows_that_are_none_are_told_with_their_lines_before_anything_is_sent(
    served: AgentProcess, collect: Collect, tmp_path: Path, output: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"responses_create_params": {}}\n\n{"a": 1}\nnot json\n{"responses_create_params": []}\n')
    done = collect(served, rows, output)

    assert done.returncode == 2
    for number, words in {3: "is no row", 4: "is not JSON", 5: "is no row"}.items():
        assert f"{rows}:{number}: {words}" in done.stderr
    assert not output.exists() and list(output.parent.iterdir()) == []


def test_what_is_missing_on_the_command_line_is_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    said = capsys.readouterr().err
    assert "input_jsonl_fpath: must be given" in said and "output_jsonl_fpath: must be given" in said


def test_help_shows_commands_files_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    for words in ("+resume_from_cache=true", ".failures.jsonl", "Exit status", "num_samples_in_parallel"):
        assert words in said


def test_rows_in_great_number_take_no_more_memory_than_few(
    served: AgentProcess, tmp_path: Path, output: Path
) -> None:
    """The peak after a tenth of the rollouts, and at the end: the same but for a bit a rollout, and what the allocator keeps."""
    rows = rows_of(tmp_path, MANY_ROWS, padding="x" * (12_000 if MANY_ROWS < 10_000 else 1_000))
    with collecting(served, rows, output, "+concurrency=100", "+num_repeats=2") as process:
        watched = psutil.Process(process.pid)
        until_lines(process, output, MANY_ROWS // 5)
        early = watched.memory_info().rss
        latest = early
        while process.poll() is None:
            try:
                latest = watched.memory_info().rss or latest
            except psutil.NoSuchProcess:
                break
            time.sleep(0.02)
    print(f"{early >> 20} MiB after a tenth, {latest >> 20} MiB at the end")
    assert process.returncode == 0
    assert len(times_written(output)) == 2 * MANY_ROWS
    assert latest - early < 8 << 20
