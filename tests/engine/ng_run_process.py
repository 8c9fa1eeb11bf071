"""A real `ng_run`: its own Ray, Serve behind HAProxy, and real vLLM engines on logical GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from openai import OpenAI

from local_vllm.cluster.machine import free_ports
from local_vllm.processes import tree

READY = "Stop: Ctrl-C"
START_DEADLINE_S = 420.0
# By then nothing is left of a process that was killed.
GONE_WITHIN_S = 15.0
KEY = "key-of-the-tests"
# Lets engines import what is in tests/engine.
WITH_HELD_BACK = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
}


def until(fact: Callable[[], object], deadline_s: float) -> bool:
    """Whether `fact` came true in time."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if fact():
            return True
        time.sleep(0.1)
    return bool(fact())


class NgRun:
    """A started `ng_run` and everything below it. `environment` is added to ours, `prefix` runs it elsewhere, and
    `host` is where it is then reached."""

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str] = MappingProxyType({}),
        prefix: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self.port = free_ports(1)[0]
        self.state = folder / "state"
        self.output = folder / "output.txt"
        self.segments_before = tree.shared_memory_names()
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        me = os.getpid()
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*prefix, Path(sys.executable).parent / "ng_run", f"++http_port={self.port}", *words],
                env=env | {"XDG_STATE_HOME": str(self.state), **environment},
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A test run that is killed takes its runs along.
                preexec_fn=lambda: tree.die_with_parent(me, signal.SIGTERM),
            )
        self.seen: dict[int, psutil.Process] = {}

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_until_ready(self, deadline_s: float = START_DEADLINE_S) -> None:
        def settled() -> bool:
            self.processes()
            return READY in self.text() or self.process.poll() is not None

        assert until(settled, deadline_s), f"not ready in time:\n{self.text()}"
        assert READY in self.text(), self.text()

    def client(self, server: str | None = None) -> OpenAI:
        path = f"/{server}/v1" if server else "/v1"
        return OpenAI(base_url=self.url + path, api_key="none", max_retries=0, timeout=120)

    def record(self) -> dict:
        (path,) = (self.state / "local_vllm" / "runs").glob("*.json")
        return json.loads(path.read_text())

    def processes(self) -> list[psutil.Process]:
        """Everything that was ever seen below this run and still lives."""
        try:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self.seen.setdefault(process.pid, process)
        except psutil.NoSuchProcess:
            pass
        return [process for process in self.seen.values() if lives(process)]

    def named(self, part: str) -> list[psutil.Process]:
        """The living processes of this run whose command line has `part`."""
        return [process for process in self.processes() if part in command_line(process)]

    def free_gpus_and_groups(self) -> tuple[int, int]:
        """Free GPUs and living placement groups of the run's own cluster, asked of Ray."""
        record = self.record()
        code = (
            "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)\n"
            "from local_vllm.cluster.nodes import read_cluster\n"
            "groups = [g for g in ray.util.placement_group_table().values() if g['state'] != 'REMOVED']\n"
            "print(read_cluster().gpus_free, len(groups))"
        )
        env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{record['volatile']}/ray_token"}
        done = subprocess.run(
            [sys.executable, "-c", code, record["ray_address"]], env=env, capture_output=True, text=True, timeout=60
        )
        free, groups = done.stdout.split()
        return int(free), int(groups)

    def segments(self) -> set[str]:
        """Shared memory that is new and that no living process maps (another run beside this one has its own)."""
        new = tree.shared_memory_names() - self.segments_before
        return new - tree.mapped_shared_memory(psutil.pids()) if new else new

    def leftovers(self) -> list[str]:
        """What a run that is over has left: processes, shared memory, its folder, its record."""
        left = [f"{process.pid} {command_line(process)[:120]}" for process in self.processes()]
        left += [f"/dev/shm/{name}" for name in self.segments()]
        left += [str(path) for path in (self.state / "local_vllm" / "runs").glob("*.json")]
        return left

    def stop(self, sig: int = signal.SIGINT, deadline_s: float = 40) -> int:
        """Ask the run to stop; its exit status."""
        self.processes()
        self.process.send_signal(sig)
        return self.process.wait(deadline_s)

    def let_others_go_before_engines(self) -> None:
        """Give vLLM's workers, which spin between steps, a CPU only while nobody else wants it.

        On two CPUs they starve everything for as long as they generate, the kernel's own network threads too: vLLM's API
        server then sends no token, answers no /metrics and sees no client leave for up to half a minute (seen with vLLM
        0.32 on Linux 6.18, asked directly; neither niceness nor a CPU of their own helps).
        """
        self._schedule_engines(os.SCHED_IDLE)

    def let_engines_compete(self) -> None:
        """Take that back."""
        self._schedule_engines(os.SCHED_OTHER)

    def _schedule_engines(self, policy: int) -> None:
        for process in self.named("ray::EngineCoreActor") + self.named("ray::RayWorkerProc"):
            for thread in process.threads():
                with suppress(ProcessLookupError, PermissionError):  # threads come and go
                    os.sched_setscheduler(thread.id, policy, os.sched_param(0))

    def end(self) -> None:
        """End it in any case, with everything below it."""
        self.processes()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for process in self.processes():
            process.kill()


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def running(folder: Path, *words: str, deadline_s: float = START_DEADLINE_S, **more: Any) -> Iterator[NgRun]:
    """An `ng_run` that is ready; ended in any case."""
    run = NgRun(words, folder, **more)
    try:
        run.wait_until_ready(deadline_s)
        yield run
    finally:
        run.end()
