"""scripts/bench in its smallest form: the table is whole and the answers are right. Times are not tested."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import benchmarks.__main__ as program
import pytest
from benchmarks import rollouts
from benchmarks.measuring import Pace, interleaved
from benchmarks.processes import CannotMeasure, started
from benchmarks.request_path import ratios
from benchmarks.scenarios import BURST, SHORT, WHOLE
from benchmarks.start_up import launch_below
from benchmarks.table import Row, table
from benchmarks.targets import (
    CONVERTER,
    GATEWAY,
    LAYERS,
    PASS_THROUGH,
    WHOLE_PATH,
    converter,
    pass_through,
    stand_in_engine,
)

ROOT = Path(__file__).parents[2]
PARTS = ["whole-path", "converter", "layers", "streaming", "latency", "rollouts", "planner"]
PARTS += ["start-up", "share", "direct"]
PLANNER = ["planner: fresh", "planner: worn", "planner: refused"]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "scripts/bench", *words], capture_output=True, text=True, timeout=280, cwd="/")


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What is measured, in the order of the table; the table is shown by `pytest -s`."""
    print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    heading, *rows = done.stdout.splitlines()
    assert re.split(r"\s{2,}", heading) == ["what", "mark", "measured", "in figures"]
    return [re.split(r"\s{2,}", row)[0] for row in rows]


def test_the_table_has_a_line_for_everything_that_is_asked_for() -> None:
    found = lines(bench("--only=converter,layers,planner", "--rounds=1", "--seconds=0.1"))
    measured = [f"{name}: {scenario.title}" for scenario in WHOLE for name in (PASS_THROUGH, CONVERTER)]
    measured += [f"{name}: {SHORT.title}" for name in (PASS_THROUGH, *LAYERS, CONVERTER)]
    assert found == [*measured, *PLANNER]


@pytest.fixture
def streams(tmp_path: Path) -> Iterator[list[Row]]:
    with ExitStack() as stack:
        engine = stack.enter_context(stand_in_engine(tmp_path))
        targets = [stack.enter_context(make(tmp_path, engine)) for make in (pass_through, converter)]
        yield ratios(BURST, interleaved(targets, BURST, Pace(1, 0.1), connections=4))


def test_streams_are_whole_on_every_way(streams: list[Row]) -> None:
    print(f"\n{table(streams)}")
    assert [(row.problem, row.figures["errors"]) for row in streams] == [(None, 0)] * 2


@pytest.mark.engine
def test_the_whole_path_answers_as_the_converter_does() -> None:
    found = lines(bench("--only=whole-path,latency", "--rounds=1", "--seconds=0.2"))
    for scenario in WHOLE:
        assert f"{WHOLE_PATH}: {scenario.title}" in found
    assert f"{GATEWAY}: one-shot" in found
    assert f"{WHOLE_PATH}: added latency, p99" in found


def test_an_engine_is_started_alone_as_ng_run_has_started_it(tmp_path: Path) -> None:
    entrypoints = tmp_path / "vllm" / "entrypoints"
    entrypoints.mkdir(parents=True)
    (entrypoints / "server.py").write_text("import time; time.sleep(60)")
    engine = "[sys.executable, '-m', 'vllm.entrypoints.server', '--port', '1234']"
    guard = [sys.executable, "-c", f"import subprocess, sys; subprocess.run({engine})", "-m", "vllm", "--port", "1234"]
    with started(guard, tmp_path / "log", OF_THE_ENGINE="yes") as it:
        it.wait_until(lambda: any(child.cmdline()[1:2] == ["-m"] for child in it.process.children()), 20)
        found = launch_below(it)
    assert found.command[1:] == ["-m", "vllm.entrypoints.server", "--port", "1234"]
    assert found.environment["OF_THE_ENGINE"] == "yes"
    assert found.health == "http://127.0.0.1:1234/health"


def test_a_part_that_cannot_be_measured_is_a_line_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def rows(*_: object) -> Iterator[Row]:
        raise CannotMeasure("ng_run did not come up. What it printed:\nTraceback")
        yield

    monkeypatch.setattr(rollouts, "rows", rows)
    found = list(program.rows(["rollouts", "planner"], Pace(1, 0.1), tmp_path))
    assert [row.what for row in found] == ["rollouts", *PLANNER]
    assert found[0].verdict == "FAILED: ng_run did not come up. What it printed:"


def test_help_says_what_every_part_is() -> None:
    shown = bench("--help")
    assert shown.returncode == 0
    assert re.findall(r"^  ([a-z]\S+) {2,}\S", shown.stdout.partition("Parts")[2], re.MULTILINE) == PARTS


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--only=conv", f"no part 'conv'; there are {', '.join(PARTS)}"),
        ("--rounds=0", "--rounds is at least 1"),
        ("--seconds=0", "--seconds more than 0"),
    ],
)
def test_a_wrong_word_is_answered_with_what_there_is(word: str, message: str) -> None:
    refused = bench(word)
    assert refused.returncode == 2
    assert message in refused.stderr
