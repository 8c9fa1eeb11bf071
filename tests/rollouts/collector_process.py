"""A real `ng_collect_rollouts` against a real stand-in agent, both processes of their own; and rows for them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stand_in_agent import AGENT

NG_COLLECT_ROLLOUTS = Path(sys.executable).parent / "ng_collect_rollouts"
DEADLINE_S = 1200


def row(number: int, **more: Any) -> dict[str, Any]:
    """A row as public data sets have them."""
    asked = [{"role": "user", "content": f"What is the weather in city {number}?"}]
    return {"id": f"r{number}", "responses_create_params": {"input": asked, "temperature": 0.5}, **more}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def written(path: Path) -> list[dict[str, Any]]:
    """The lines of an output; fails on one that is not whole."""
    content = path.read_bytes()
    assert content.endswith(b"\n") or not content
    return [json.loads(line) for line in content.splitlines()]


def times_written(path: Path) -> Counter[tuple[int, int]]:
    """How often each (task, rollout) stands in an output."""
    with path.open("rb") as file:
        lines = (json.loads(line) for line in file)
        return Counter((line["_ng_task_index"], line["_ng_rollout_index"]) for line in lines)


class AgentProcess:
    """The stand-in agent at a port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.begin()

    def begin(self) -> None:
        program = Path(__file__).with_name("stand_in_agent.py")
        self._process = subprocess.Popen([sys.executable, program, str(self.port)])
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self._process.poll() is None
                time.sleep(0.02)
        raise TimeoutError("the stand-in agent did not come up")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def control(self, **values: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/control", json.dumps(values).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def agent_process() -> Iterator[AgentProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = AgentProcess(port)
    try:
        yield agent
    finally:
        agent.end()


def command(agent: AgentProcess, rows: Path, output: Path, *more: str) -> list[str]:
    return [
        str(NG_COLLECT_ROLLOUTS), f"+agent_name={AGENT}", f"+http_port={agent.port}", f"+input_jsonl_fpath={rows}",
        f"+output_jsonl_fpath={output}", *more,
    ]  # fmt: skip


@contextmanager
def collecting(agent: AgentProcess, rows: Path, output: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """While it runs; it is killed at the end of the block at the latest."""
    words = command(agent, rows, output, *more)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=rows.parent)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until_lines(process: subprocess.Popen[str], output: Path, count: int) -> None:
    """Return when the output has so many lines, or the process has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        if output.exists() and output.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)
    assert process.poll() is not None, f"there are not {count} lines after {DEADLINE_S} s"


def kill_at(process: subprocess.Popen[str], output: Path, count: int, later_s: float) -> None:
    """SIGKILL, a while after the output has so many lines."""
    until_lines(process, output, count)
    time.sleep(later_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
