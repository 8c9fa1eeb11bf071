"""How long `ng_run` takes until it answers, beyond a bare `vllm serve` with the same flags. On vLLM's CPU engine.

The flags are those of the engine that `ng_run` has just started, Ray as executor among them, so the bare one needs a Ray
cluster that is up. On a warm cluster `ng_run` finds that too, and no Serve; otherwise it starts both.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.processes import COMMANDS, CannotMeasure, Started, ng_run, started
from benchmarks.table import Row
from local_vllm.cluster.machine import free_ports
from local_vllm.processes.members import FOLDER

DEADLINE_S = 420.0
RAY_DEADLINE_S = 90.0
OBJECT_STORE_BYTES = 128 << 20
RAY_IS_UP = "Ray runtime started"
MARK_S, WARM_MARK_S = 8.0, 3.0
# Folders of an engine that its run takes away.
FOLDERS = (FOLDER, "VLLM_CONFIG_ROOT")


@dataclass(frozen=True, slots=True)
class Launch:
    """How an engine was started: its command line, and its whole environment."""

    command: list[str]
    environment: Mapping[str, str]

    @property
    def health(self) -> str:
        return f"http://127.0.0.1:{self.command[self.command.index('--port') + 1]}/health"


def rows(rounds: int, folder: Path) -> Iterator[Row]:
    """Interleaved: each round starts the engine with `ng_run`, with `ng_run` on a warm cluster, and there alone."""
    bare, cold, warm = [], [], []
    for number in range(rounds):
        home = folder / f"start-{number}"
        for name in ("bare", "cold", "warm"):
            (home / name).mkdir(parents=True)
        cold.append(ng_run_start(home / "cold")[0])
        with ray(home / "warm") as (cluster, address, environment):
            took_s, launch = ng_run_start(home / "warm", f"+ray_address={address}", below=cluster, **environment)
            warm.append(took_s)
            bare.append(bare_start_s(launch, home / "bare", environment))
    for name, times, mark in (("ng_run", cold, MARK_S), ("ng_run on a warm cluster", warm, WARM_MARK_S)):
        more = median(times) - median(bare)
        figures = {"ready_after_s": median(times), "vllm_serve_alone_s": median(bare), "rounds": rounds}
        yield Row(f"{name}: start, over vllm serve", "s", more, mark, figures=figures)


def bare_start_s(launch: Launch, folder: Path, environment: Mapping[str, str]) -> float:
    """Seconds until the same engine answers without us."""
    folders = [Path(launch.environment[name]) for name in FOLDERS]
    for each in folders:
        each.mkdir(parents=True, exist_ok=True)
    try:
        with started(launch.command, folder / "vllm.log", **{**launch.environment, **environment}) as engine:
            return engine.wait_until_answers(launch.health, DEADLINE_S)
    finally:
        for each in folders:
            shutil.rmtree(each, ignore_errors=True)


def ng_run_start(folder: Path, *words: str, below: Started | None = None, **environment: str) -> tuple[float, Launch]:
    """Seconds until it is ready, and how it has started its engine; that is below the cluster that it joined."""
    (port,) = free_ports(1)
    with ng_run(folder, f"++http_port={port}", *words, deadline_s=DEADLINE_S, **environment) as (it, took_s):
        return took_s, launch_below(below or it)


def launch_below(it: Started) -> Launch:
    """The engine among the processes that `it` has started."""
    for process in it.process.children(recursive=True):
        try:
            words = process.cmdline()
            if "--port" in words and words[1] == "-m" and words[2].startswith("vllm.entrypoints"):
                return Launch(words, process.environ())
        except psutil.Error:
            continue
    raise CannotMeasure("ng_run is ready, and there is no process of vLLM's")


@contextmanager
def ray(folder: Path) -> Iterator[tuple[Started, str, dict[str, str]]]:
    """A cluster as somebody else would start it: its process, its address, and the variables by which one may join."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    port, clients, agent = free_ports(3)
    command = [COMMANDS / "ray", "start", "--head", "--block", f"--port={port}", "--num-gpus=1"]
    command += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder / 'ray'}"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
    command += [f"--ray-client-server-port={clients}", f"--dashboard-agent-listen-port={agent}"]
    with started(command, folder / "ray.log", **environment) as it:
        it.wait_until(lambda: RAY_IS_UP in it.text(), RAY_DEADLINE_S)
        yield it, f"127.0.0.1:{port}", environment
