"""A vLLM engine that somebody else runs: `vllm serve` on a port of its own, without Ray, without us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from ng_run_process import until

from local_vllm.cluster.machine import free_ports
from local_vllm.processes import tree

MODEL = "local-vllm-default"
START_DEADLINE_S = 300


class BareEngine:
    """Starts at once; `wait_until_ready` says when it answers. What it prints is in `folder`."""

    def __init__(self, model: Path, folder: Path, **flags: Any) -> None:
        self.port = free_ports(1)[0]
        self.log = folder / f"vllm-{self.port}.log"
        me = os.getpid()
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *self._arguments(model, flags)],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: tree.die_with_parent(me, signal.SIGTERM),
            )

    def _arguments(self, model: Path, flags: dict[str, Any]) -> list[str]:
        told = {"model": model, "served-model-name": MODEL, "host": "127.0.0.1", "port": self.port} | flags
        return ["--enforce-eager", *(word for name, value in told.items() for word in (f"--{name}", str(value)))]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_until_ready(self) -> None:
        assert until(self._answers_or_is_gone, START_DEADLINE_S), self.log.read_text()
        assert self.process.poll() is None, self.log.read_text()

    def _answers_or_is_gone(self) -> bool:
        if self.process.poll() is not None:
            return True
        with suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).status == 200
        return False

    def processes(self) -> list[psutil.Process]:
        try:
            main = psutil.Process(self.process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to all of it at once; its shared memory, which nobody else takes away then, goes too."""
        processes = self.processes()
        segments = tree.mapped_shared_memory([process.pid for process in processes])
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)
        psutil.wait_procs(processes, 10)
        tree.remove_shared_memory(segments)


@contextmanager
def bare_engines(count: int, model: Path, folder: Path, **flags: Any) -> Iterator[list[BareEngine]]:
    """Started side by side, and not waited for; ended in any case."""
    engines = [BareEngine(model, folder, **flags) for _ in range(count)]
    try:
        yield engines
    finally:
        for engine in engines:
            engine.end()
