"""Runs with a real engine that end while it starts. tests/engine_faults and tests/engine_api have those that end later."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from ng_run_process import GONE_WITHIN_S, NgRun, command_line, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def test_a_second_signal_stops_a_starting_run_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    run = NgRun([], tmp_path)
    assert until(lambda: run.processes() and "policy_model: " in run.text(), 60), run.text()
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    asked = time.monotonic()
    if run.process.poll() is None:
        run.process.send_signal(signal.SIGINT)
    assert run.process.wait(20) == 0
    assert time.monotonic() - asked < 10
    assert until(lambda: run.leftovers() == [], GONE_WITHIN_S), run.leftovers()


def test_an_engine_that_is_killed_while_starting_is_reported_within_5_s(tmp_path: Path) -> None:
    run = NgRun([], tmp_path)
    assert until(lambda: run.named("vllm.entrypoints") and "policy_model: starting Python" in run.text(), 90)
    time.sleep(3)
    next(p for p in run.named("vllm.entrypoints") if "guard" not in command_line(p)).kill()
    assert until(lambda: "policy_model: failed: vLLM ended with status 137" in run.text(), 5), run.text()
    assert run.process.wait(30) == 1
    assert until(lambda: run.leftovers() == [], GONE_WITHIN_S), run.leftovers()


def test_an_engine_that_dies_while_starting_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    words = ["++policy_model.local_vllm_model.vllm_serve_kwargs.tool_call_parser=no-such-parser"]
    run = NgRun(words, tmp_path)
    assert run.process.wait(180) == 1
    assert "policy_model: vLLM ended with status" in run.text()
    assert "no-such-parser" in run.text()
    assert until(lambda: run.leftovers() == [], GONE_WITHIN_S), run.leftovers()
