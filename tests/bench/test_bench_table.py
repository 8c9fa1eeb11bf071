"""What is told of the measurements: medians, ratios, verdicts, one table, one line for each saved run."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest
from benchmarks import results
from benchmarks.measuring import Figures, Pace, failed, medians
from benchmarks.real_engine import CHAT, DIRECT, ONE_WORD, SCENARIOS, direct, share
from benchmarks.request_path import added, ratios
from benchmarks.results import circumstances, save
from benchmarks.scenarios import SHORT, STREAM
from benchmarks.table import Row, table
from benchmarks.targets import CONVERTER, ENGINE, PASS_THROUGH, WHOLE_PATH


def figures(cpu_ms: float = 1.0, p50_ms: float = 2.0, p99_ms: float = 9.0, **more: object) -> Figures:
    return Figures(cpu_ms, p50_ms, p99_ms, 500.0, **{"requests": 100, **more})


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("a", measured=1.5, mark=1.5), "met"),
        (Row("a", measured=1.51, mark=1.5), "missed"),
        (Row("a", measured=1.5), ""),
        (Row("a", measured=0.1, mark=1.5, problem="2 items"), "FAILED: 2 items"),
        (Row("a", problem="it did not come up"), "FAILED: it did not come up"),
    ],
)
def test_a_line_has_a_verdict_where_it_has_a_mark(row: Row, verdict: str) -> None:
    assert row.verdict == verdict


def test_the_columns_of_the_table_stand_below_each_other() -> None:
    rows = [Row("one-shot", measured=1.234, mark=1.5, figures={"cpu_ms": 0.25}), Row("a longer one", "ms", 12.0)]
    heading, first, second = table(rows).splitlines()
    assert first == "one-shot      1.5 x    1.23 x  met  cpu ms 0.25"
    assert second == "a longer one      -     12 ms"
    assert heading.index("in figures") == first.index("cpu ms")


def test_the_median_of_the_rounds_is_told_and_every_error_counts() -> None:
    found = medians([
        figures(1.0, cpu_ms_by_role={"HAProxy": 1.0}),
        figures(9.0, errors=1, problem="cut off"),
        figures(2.0, cpu_ms_by_role={"HAProxy": 3.0}),
    ])
    assert (found.cpu_ms, found.requests, found.errors, found.problem) == (2.0, 300, 1, "cut off")
    assert found.cpu_ms_by_role == {"HAProxy": 1.0}


def test_the_ratio_is_to_the_pass_through_of_the_same_rounds() -> None:
    base, ours = ratios(SHORT, {PASS_THROUGH: figures(2.0), WHOLE_PATH: figures(2.5)})
    assert (base.measured, base.mark) == (None, None)
    assert (ours.measured, ours.mark, ours.verdict) == (1.25, 1.5, "met")
    assert ours.figures["cpu_ms"] == 2.5


def test_of_a_stream_the_cpu_time_of_an_event_is_told() -> None:
    _, ours = ratios(STREAM, {PASS_THROUGH: figures(4.0), WHOLE_PATH: figures(16.0)})
    assert (ours.measured, ours.figures["cpu_us_per_event"]) == (4.0, 100.0)


def test_with_a_wrong_pass_through_every_ratio_has_failed() -> None:
    rows = ratios(SHORT, {PASS_THROUGH: failed("status 500"), CONVERTER: figures()})
    assert [row.verdict for row in rows] == ["FAILED: status 500"] * 2


def test_latency_is_what_comes_on_top_of_the_engines_own() -> None:
    p50, p99 = added({ENGINE: figures(p50_ms=1.0, p99_ms=2.0), WHOLE_PATH: figures(p50_ms=1.5, p99_ms=6.0)})
    assert (p50.measured, p50.verdict) == (0.5, "met")
    assert (p99.measured, p99.verdict) == (4.0, "missed")


def test_the_share_of_a_request_is_what_no_process_of_vllm_has_used() -> None:
    by_role = {"HAProxy": 0.5, "replica": 1.0, "other": 0.5, "API server": 18.0, "engine": 80.0}
    many = {WHOLE_PATH: figures(100.0, cpu_ms_by_role=by_role), CHAT: figures(80.0)}
    one = {WHOLE_PATH: figures(p50_ms=200.0), CHAT: figures(p50_ms=190.0)}
    cpu, over_vllm, latency = share(SCENARIOS[0], many, one)
    assert (cpu.measured, cpu.verdict) == (pytest.approx(2.0), "met")
    assert over_vllm.measured == 1.25
    assert (latency.measured, latency.verdict) == (5.0, "missed")


def test_the_direct_way_is_held_against_the_api_servers_own_work() -> None:
    many = {
        DIRECT: figures(100.0, cpu_ms_by_role={"API server": 11.0, "engine": 89.0}),
        CHAT: figures(90.0, cpu_ms_by_role={"API server": 10.0, "engine": 80.0}),
    }
    one = {DIRECT: figures(p50_ms=10.25), CHAT: figures(p50_ms=10.0)}
    cpu, latency = direct(ONE_WORD, many, one)
    assert (cpu.measured, cpu.verdict) == (pytest.approx(1.1), "met")
    assert (latency.measured, latency.verdict) == (0.25, "met")


def test_latencies_of_long_answers_have_no_mark_for_a_fraction_of_a_millisecond() -> None:
    one = {DIRECT: figures(p50_ms=503.0), CHAT: figures(p50_ms=500.0)}
    _, latency = direct(SCENARIOS[0], one, one)
    assert (latency.measured, latency.mark, latency.verdict) == (3.0, None, "")


def test_a_saved_run_is_one_line_with_its_circumstances(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    rows = [Row("one-shot", measured=1.23456, mark=1.5, figures={"p50_ms": math.nan, "cpu_ms": 0.25})]
    save(rows, Pace(3, 2.0), file)
    save(rows, Pace(1, 0.5), file)
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["rounds"], first["seconds"], second["rounds"]) == (3, 2.0, 1)
    assert first["rows"][0] == {"what": "one-shot", "unit": "x", "measured": 1.235, "mark": 1.5, "cpu_ms": 0.25}
    assert {"date", "commit", "cpu", "cores", "python", "ray", "msgspec", "uvloop"} <= first.keys()


def test_the_commit_is_the_one_that_is_checked_out() -> None:
    asked = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(asked, capture_output=True, text=True, cwd=results.FILE.parent)
    commit = circumstances()["commit"].removesuffix("+")
    assert commit == head.stdout.strip()[:12]


def test_every_saved_result_can_be_read() -> None:
    lines = results.FILE.read_text().splitlines() if results.FILE.exists() else []
    for line in map(json.loads, lines):
        assert {"date", "commit", "cpu", "cores", "rows"} <= line.keys()
        assert all(row["what"] and row["unit"] for row in line["rows"])
