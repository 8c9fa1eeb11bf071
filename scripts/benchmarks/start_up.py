"""How long `ng_run` takes until it answers, beyond a bare `vllm serve` with the same flags. On vLLM's CPU engine.

On a warm cluster Ray is up already, and Serve is not.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.processes import COMMANDS, ng_run, started
from benchmarks.table import Row
from local_vllm.cluster.machine import free_ports
from local_vllm.config.compose import load_run_config
from local_vllm.config.schema import LocalVLLMModelSettings
from local_vllm.config.vllm_serve_flags import to_argv
from local_vllm.cpu.default_model import build_default_model
from local_vllm.engine import cpu_flags
from local_vllm.plan.topology import PackStrategy, Topology

DEADLINE_S = 420.0
RAY_DEADLINE_S = 90.0
OBJECT_STORE_BYTES = 128 << 20
RAY_IS_UP = "Ray runtime started"
MARK_S, WARM_MARK_S = 8.0, 3.0


def rows(rounds: int, folder: Path) -> Iterator[Row]:
    """Interleaved: each round starts the engine alone, with `ng_run`, and with `ng_run` on a warm cluster."""
    model = build_default_model(folder / "model")
    bare, cold, warm = [], [], []
    for number in range(rounds):
        home = folder / f"start-{number}"
        for name in ("bare", "cold", "warm"):
            (home / name).mkdir(parents=True)
        bare.append(bare_start_s(model, home / "bare"))
        cold.append(ng_run_start_s(home / "cold"))
        with ray(home / "warm") as (address, environment):
            warm.append(ng_run_start_s(home / "warm", f"+ray_address={address}", **environment))
    for name, times, mark in (("ng_run", cold, MARK_S), ("ng_run on a warm cluster", warm, WARM_MARK_S)):
        more = median(times) - median(bare)
        figures = {"ready_after_s": median(times), "vllm_serve_alone_s": median(bare), "rounds": rounds}
        yield Row(f"{name}: start, over vllm serve", "s", more, mark, figures=figures)


def bare_start_s(model: Path, folder: Path) -> float:
    (port,) = free_ports(1)
    with started(bare_command(model, port), folder / "vllm.log", VLLM_NO_USAGE_STATS="1") as engine:
        return engine.wait_until_answers(f"http://127.0.0.1:{port}/health", DEADLINE_S)


def bare_command(model: Path, port: int) -> list[str]:
    """`vllm serve` for the engine of `configs/quickstart.yaml`, without us and without Ray."""
    (server,) = load_run_config([], cwd=model).servers
    assert isinstance(server.settings, LocalVLLMModelSettings)
    wanted = server.settings.vllm_serve_kwargs.flags()
    topology = Topology(server.name, 1, 1, 1, PackStrategy.STRICT)
    flags = cpu_flags.flags(wanted, topology, json.loads((model / "config.json").read_text())) | wanted
    place = {"model": str(model), "served_model_name": server.settings.model, "host": "127.0.0.1", "port": port}
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *to_argv(place | flags)]


def ng_run_start_s(folder: Path, *words: str, **environment: str) -> float:
    (port,) = free_ports(1)
    with ng_run(folder, f"++http_port={port}", *words, deadline_s=DEADLINE_S, **environment) as (_, took_s):
        return took_s


@contextmanager
def ray(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster as somebody else would start it: its address, and the variables by which a process may join."""
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
        yield f"127.0.0.1:{port}", environment
