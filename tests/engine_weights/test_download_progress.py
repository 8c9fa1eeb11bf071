"""What a person sees of a download: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from local_vllm.engine.spec import Download, EngineState, EngineStatus
from local_vllm.runs import progress
from local_vllm.runs.progress import Progress, described

GB = 10**9


class Clock:
    """Time as the test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def status(done_gb: float, detail: str = "fetching org/model") -> EngineStatus:
    download = Download(int(done_gb), 60, int(done_gb * GB), 60 * GB, GB / 2)
    return EngineStatus(1, "policy_model", "org/model", EngineState.STARTING, detail, download=download)


def test_a_download_in_a_line_has_files_bytes_speed_and_the_time_that_is_left() -> None:
    assert described(Download(3, 12, 1_234_000_000, 60_500_000_000, 512_000_000)) == (
        "3 of 12 files, 1.23 of 60.5 GB (2%), 512 MB/s, 2 min left"
    )
    assert described(Download(0, 2, 4_000, 8_000_000, 0.0)) == "0 of 2 files, 4 kB of 8 MB (0%), 0 B/s"
    assert described(Download(2, 2, 8_000_000, 8_000_000, 0.0)) == "2 of 2 files, 8 of 8 MB (100%)"
    assert described(Download(1, 9, 10 * GB, 730 * GB, GB / 10)).endswith("100 MB/s, 2 h 0 min left")


def test_elsewhere_than_on_a_terminal_a_line_comes_for_each_tenth_and_not_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, output = Clock(monkeypatch), io.StringIO()
    shown = Progress(Console(file=output, width=200))
    for second in range(32):
        clock.now = 100.0 + second
        shown.engine(status(min(60.0, second * 4)))
    lines = output.getvalue().splitlines()
    first = (
        "[   0.0 s] policy_model: fetching org/model: 0 of 60 files, 0 B of 60 GB (0%), 500 MB/s, 2 min left"
    )
    assert lines[0] == first
    assert [line[1:9].strip() for line in lines] == ["0.0 s", "10.0 s", "20.0 s"]


def test_a_slow_download_says_each_minute_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, output = Clock(monkeypatch), io.StringIO()
    shown = Progress(Console(file=output, width=200))
    for second in range(200):
        clock.now = 100.0 + second
        shown.engine(status(second / 1000))
    assert len(output.getvalue().splitlines()) == 4


def test_what_comes_after_a_download_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    output = io.StringIO()
    shown = Progress(Console(file=output, width=200))
    shown.engine(status(1))
    shown.engine(EngineStatus(2, "policy_model", "org/model", EngineState.STARTING, "starting Python"))
    assert output.getvalue().splitlines()[1] == "[   0.0 s] policy_model: starting Python"


def test_on_a_terminal_there_is_a_bar() -> None:
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True, color_system=None)
    shown = Progress(console)
    with shown.shown():
        shown.engine(status(30))
    text = output.getvalue()
    assert "fetching org/model" in text
    assert "━━━━━━━━" in text
    assert "30 of 60 files, 30 of 60 GB (50%), 500 MB/s, 60 s left" in text
