"""What a rollout of one turn costs beside the engine: the CPU time of every process between the rows and the engine.

A stand-in engine that answers at once, `ng_run` with simple_task in front of it, and `ng_collect_rollouts`. The
stand-in's own time is left out, and the collector's start, which is that of a collection of one row.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.accounting import idle_rates, snapshot, used, without_idle
from benchmarks.processes import COMMANDS, CannotMeasure, ng_run
from benchmarks.scenarios import mark
from benchmarks.table import Row
from benchmarks.targets import base_url, stand_in_engine
from local_vllm.cluster.machine import free_ports

AGENT = "simple_task_simple_agent"
ENVIRONMENT = "resources_servers/simple_task/configs/simple.yaml"
CONFIG = """\
policy_model:
  responses_api_models:
    vllm_model: {{base_url: "{engine}/v1", model: stand-in}}
"""
QUESTION = "Which word is the odd one out? Say it." + mark("text", 30, 2)
ROW = {"responses_create_params": {"input": [{"role": "user", "content": QUESTION}]}, "expected_answer": "hammer"}
ROLES = ("collector", "replica", "HAProxy", "other")
MARK_MS = 5.0
IDLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Amount:
    rollouts: int = 4000
    concurrency: int = 64
    rounds: int = 3


def rows(amount: Amount, folder: Path) -> Iterator[Row]:
    rounds = list(milliseconds(amount, folder))
    figures = {f"{role.replace(' ', '_')}_ms": median(each[role] for each in rounds) for role in ROLES}
    together = median(sum(each.values()) for each in rounds)
    yield Row("rollout of one turn, CPU", "ms", together, MARK_MS, figures=figures)


def milliseconds(amount: Amount, folder: Path) -> Iterator[Counter]:
    """Of CPU for a rollout, by role, round by round; the sum is everything together."""
    with ExitStack() as stack:
        engine = stack.enter_context(stand_in_engine(folder))
        (port,) = free_ports(1)
        home = folder / "rollouts"
        home.mkdir()
        (home / "model.yaml").write_text(CONFIG.format(engine=base_url(engine)))
        words = [f"+config_paths=[model.yaml,{ENVIRONMENT}]", f"++http_port={port}"]
        served, _ = stack.enter_context(ng_run(home, *words))
        (home / "rows.jsonl").write_text((json.dumps(ROW) + "\n") * amount.rollouts)
        collect(home, port, limit=min(200, amount.rollouts), concurrency=amount.concurrency)
        alone = collect(home, port, limit=1, concurrency=1)
        idle = idle_rates([served.pid], IDLE_S)
        for _ in range(amount.rounds):
            yield _round(amount, home, port, served.pid, idle, alone)


def _round(amount: Amount, home: Path, port: int, pid: int, idle: Counter, alone: float) -> Counter:
    before, begun = snapshot([pid]), time.monotonic()
    collector = collect(home, port, limit=amount.rollouts, concurrency=amount.concurrency)
    net = without_idle(used(before, snapshot([pid])), idle, time.monotonic() - begun)
    net["collector"] = collector - alone
    return Counter({role: 1000 * seconds / amount.rollouts for role, seconds in net.items()})


def collect(home: Path, port: int, *, limit: int, concurrency: int) -> float:
    """Seconds of CPU that one collection takes."""
    words = [f"+agent_name={AGENT}", "+input_jsonl_fpath=rows.jsonl", "+output_jsonl_fpath=out.jsonl"]
    words += [f"+limit={limit}", f"+concurrency={concurrency}", f"+http_port={port}"]
    env = os.environ | {"XDG_STATE_HOME": str(home / "state")}
    before = os.times()
    done = subprocess.run([COMMANDS / "ng_collect_rollouts", *words], cwd=home, env=env, capture_output=True)
    after = os.times()
    if done.returncode or len((home / "out.jsonl").read_bytes().splitlines()) != limit:
        raise CannotMeasure(f"the collection failed:\n{done.stdout.decode()}{done.stderr.decode()}")
    return after.children_user + after.children_system - before.children_user - before.children_system
