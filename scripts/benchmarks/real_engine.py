"""Requests to a real engine, vLLM's CPU engine with the default model: what the whole path adds to them, and what the
Responses API in the engine's own API server does.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.accounting import API_SERVER, ENGINE, idle_rates, role
from benchmarks.measuring import Figures, Pace, interleaved
from benchmarks.processes import ng_run
from benchmarks.scenarios import SAMPLING, Scenario
from benchmarks.table import Row
from benchmarks.targets import PLAIN, WHOLE_PATH, Target
from local_vllm.cluster.machine import free_ports
from local_vllm.config.schema import LocalVLLMModelSettings

MODEL, KEY = "local-vllm-default", "key-of-the-benchmark"
CHAT, DIRECT = "vLLM's chat endpoint", "direct way"
AT_ONCE = 8
IDLE_S = 10.0
DEADLINE_S = 420.0
DIRECT_SETTING = "direct_responses"
# A request takes about a second: for so many times longer than others is it measured.
LONGER = 5
# Latencies are compared to fractions of a millisecond: targets take turns so many times as often.
FINER = 8
# The default model's own words for an answer of 200 tokens.
ANSWERED = {"input": "REPEAT:200", "max_output_tokens": 256, **SAMPLING}
SCENARIOS = (
    Scenario("engine-short", "one-shot, 200 tokens", ANSWERED),
    Scenario("engine-train", "training, 200 tokens", ANSWERED | {"return_token_ids": True}, training=True),
)
# So short that a fraction of a millisecond shows in its latency.
ONE_WORD = Scenario("engine-word", "one-shot, 1 token", ANSWERED | {"input": "REPEAT:1"})
SHARE_MARK, DIRECT_MARK, DIRECT_ADDED_MS = 2.0, 1.2, 0.3
PARTS = ("share", "direct")


def rows(parts: Collection[str], pace: Pace, folder: Path) -> Iterator[Row]:
    with_direct = DIRECT_SETTING in LocalVLLMModelSettings.model_fields
    if "direct" in parts and not with_direct:
        yield Row(f"{DIRECT}: CPU over {CHAT}", mark=DIRECT_MARK, problem=f"there is no setting {DIRECT_SETTING}")
    with running(folder, direct=with_direct) as targets:
        if not with_direct or "direct" not in parts:
            del targets[DIRECT]
        longer = replace(pace, seconds=LONGER * pace.seconds)
        finer = replace(longer, rounds=FINER * longer.rounds, seconds=longer.seconds / FINER)
        for scenario in (*SCENARIOS, ONE_WORD):
            if scenario is ONE_WORD and DIRECT not in targets:
                continue
            many = interleaved([*targets.values()], scenario, longer, connections=AT_ONCE)
            one = interleaved([*targets.values()], scenario, finer, connections=1)
            if "share" in parts and scenario is not ONE_WORD:
                yield from share(scenario, many, one)
            if DIRECT in targets:
                yield from direct(scenario, many, one)


@contextmanager
def running(folder: Path, *, direct: bool) -> Iterator[dict[str, Target]]:
    """The ways to the engine of one `ng_run`, by name."""
    home = folder / "engine"
    home.mkdir()
    (port,) = free_ports(1)
    server = f"++{PLAIN}.local_vllm_model"
    words = [f"++http_port={port}", f"{server}.api_key={KEY}", *([f"{server}.{DIRECT_SETTING}=true"] if direct else [])]
    with ng_run(home, *words, deadline_s=DEADLINE_S) as (it, _):
        let_others_go_before_engines(it.process)
        ours = f"http://127.0.0.1:{port}/{PLAIN}"
        engine = engine_url(ours)
        known = {"model": MODEL, "headers": {"authorization": f"Bearer {KEY}"}}
        idle = idle_rates([it.pid], IDLE_S)
        yield {
            name: Target(name, api, url, url, (it.pid,), idle, **known)
            for name, api, url in (
                (CHAT, "chat", f"{engine}/chat/completions"),
                (WHOLE_PATH, "responses", f"{ours}/v1/responses"),
                (DIRECT, "responses", f"{engine}/responses"),
            )
        }


def engine_url(server_url: str) -> str:
    with urllib.request.urlopen(f"{server_url}/get_inner_vllm_config", timeout=10) as answer:
        return json.load(answer)["base_url"][0]


def let_others_go_before_engines(run: psutil.Process) -> None:
    """Give vLLM's workers, which spin between steps, a CPU only while nobody else wants it: where there are few, they
    starve everything else, vLLM's own API server too."""
    for process in run.children(recursive=True):
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if role(process.cmdline()) == ENGINE:
                for thread in process.threads():
                    os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU for a request in milliseconds: all together, of vLLM's API server, and of what is not vLLM's."""

    together: float
    api_server: float
    beside: float


def spent(found: Figures) -> Spent:
    api_server, engine = (found.cpu_ms_by_role.get(role, 0.0) for role in (API_SERVER, ENGINE))
    return Spent(found.cpu_ms, api_server, found.cpu_ms - api_server - engine)


def share(scenario: Scenario, many: Mapping[str, Figures], one: Mapping[str, Figures]) -> list[Row]:
    """What of a request is ours: of its CPU time with many at once, and of its latency alone."""
    ours, theirs = spent(many[WHOLE_PATH]), spent(many[CHAT])
    alone, direct_ms = one[WHOLE_PATH].p50_ms, one[CHAT].p50_ms
    wrong_cpu, wrong_latency = wrong(many, WHOLE_PATH), wrong(one, WHOLE_PATH)
    return [
        Row(
            f"{WHOLE_PATH}: share of the CPU, {scenario.title}",
            "%",
            100 * ours.beside / ours.together,
            SHARE_MARK,
            wrong_cpu,
            {"ours_ms": ours.beside, "together_ms": ours.together, "requests": many[WHOLE_PATH].requests},
        ),
        Row(
            f"{WHOLE_PATH}: CPU over {CHAT}, {scenario.title}",
            "x",
            ours.together / theirs.together,
            None,
            wrong_cpu,
            {"cpu_ms": ours.together, "chat_ms": theirs.together},
        ),
        Row(
            f"{WHOLE_PATH}: share of the latency, {scenario.title}",
            "%",
            100 * (alone - direct_ms) / alone,
            SHARE_MARK,
            wrong_latency,
            {"p50_ms": alone, "chat_ms": direct_ms, "requests": one[WHOLE_PATH].requests},
        ),
    ]


def direct(scenario: Scenario, many: Mapping[str, Figures], one: Mapping[str, Figures]) -> list[Row]:
    """The API server's CPU, in which the conversion is, and the latency, over those of its chat endpoint."""
    here, there = spent(many[DIRECT]).api_server, spent(many[CHAT]).api_server
    way, chat = one[DIRECT], one[CHAT]
    return [
        Row(
            f"{DIRECT}: CPU over {CHAT}, {scenario.title}",
            "x",
            here / there if there else None,
            DIRECT_MARK,
            wrong(many, DIRECT),
            {"cpu_ms": here, "chat_ms": there, "requests": many[DIRECT].requests},
        ),
        Row(
            f"{DIRECT}: added latency, {scenario.title}",
            "ms",
            way.p50_ms - chat.p50_ms,
            # The latencies of longer answers differ by several milliseconds from one to the next.
            DIRECT_ADDED_MS if scenario is ONE_WORD else None,
            wrong(one, DIRECT),
            {"p50_ms": way.p50_ms, "chat_ms": chat.p50_ms, "p99_ms": way.p99_ms, "chat_p99_ms": chat.p99_ms},
        ),
    ]


def wrong(found: Mapping[str, Figures], name: str) -> str | None:
    return found[name].problem or found[CHAT].problem
