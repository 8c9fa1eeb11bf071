"""What a SIGKILL of each of our processes leads to, on a real run with real engines."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engine_answers import SERVER, check_text
from ng_run_process import GONE_WITHIN_S, NgRun, command_line, running, until
from openai import OpenAIError

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

VLLM = re.compile(r"vllm\.entrypoints|VLLM::|ray::EngineCore|RayWorkerProc", re.IGNORECASE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NgRun]:
    """One engine that is not started again. tests/engine_faults has those that are."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "left.yaml").write_text(SERVER.format(name="left", key="dummy", size=1))
    with running(folder, "+config_paths=[left.yaml]", "++left.local_vllm_model.max_restarts=0") as started:
        yield started


def engine_of(run: NgRun, server: str) -> psutil.Process:
    """The guard of a server's engine, told by the engine's log file."""
    log = f"/{server}.log"
    guards = run.named("local_vllm.processes.guard")
    return next(guard for guard in guards if any(log in path for path in _open_files(guard)))


def _open_files(process: psutil.Process) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.is_symlink()]


def vllm_processes(run: NgRun) -> list[psutil.Process]:
    return [process for process in run.processes() if VLLM.search(command_line(process))]


def answers(run: NgRun, server: str) -> bool:
    try:
        check_text(run.client(server))
    except OpenAIError:
        return False
    return True


def test_a_killed_replica_leaves_its_engine_and_a_new_one_answers(run: NgRun) -> None:
    engines = {process.pid for process in vllm_processes(run)}
    (replica,) = run.named("ray::ServeReplica:left")
    replica.kill()
    killed = time.monotonic()
    assert until(lambda: any(p.pid != replica.pid for p in run.named("ray::ServeReplica:left")), GONE_WITHIN_S)
    assert until(lambda: answers(run, "left"), GONE_WITHIN_S - (time.monotonic() - killed))
    assert {process.pid for process in vllm_processes(run)} == engines


def test_a_killed_guard_takes_its_engine_along_and_a_run_without_engines_ends(run: NgRun) -> None:
    guard = engine_of(run, "left")
    guard.kill()
    assert until(lambda: not vllm_processes(run), GONE_WITHIN_S)
    assert run.process.wait(40) == 1
    assert "every engine has ended" in run.text()
    assert until(lambda: run.leftovers() == [], GONE_WITHIN_S), run.leftovers()


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
