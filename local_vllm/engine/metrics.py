"""Reads vLLM's `/metrics`: how many requests it has, and what shows that each data-parallel rank makes steps. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from local_vllm.engine.supervise import RankSeen

# Each of these changes with a step of the rank that does something: the gauges too, a long prompt moves nothing else.
_MARKS = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:iteration_tokens_total_count",
    "vllm:request_success_total",
    "vllm:num_preemptions_total",
    "vllm:kv_cache_usage_perc",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:prefix_cache_queries_total",
)
_WORK = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_SLEEP = "vllm:engine_sleep_state"
_RANK = re.compile(r'\bengine="(\d+)"')
_AWAKE = re.compile(r'\bsleep_state="awake"')


def ranks_seen(metrics: str) -> dict[int, RankSeen]:
    """What is told of each rank. vLLM numbers the ranks of one server from 0."""
    values: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    asleep: set[int] = set()
    for name, labels, value in _samples(metrics):
        rank = int(found[1]) if (found := _RANK.search(labels)) else 0
        if name in _MARKS:
            values[rank][name] += value
        elif name == _SLEEP and _AWAKE.search(labels) and value == 0:
            asleep.add(rank)
    return {
        rank: RankSeen(
            marks=tuple(of.get(name, 0.0) for name in _MARKS),
            works=any(of.get(name, 0.0) > 0 for name in _WORK),
            sleeps=rank in asleep,
        )
        for rank, of in values.items()
    }


def requests_in_flight(metrics: str) -> int:
    """Requests that run or wait, over all ranks."""
    return int(sum(value for name, _, value in _samples(metrics) if name in _WORK))


def _samples(metrics: str) -> Iterator[tuple[str, str, float]]:
    # A gauge may have a variant by reason, whose name goes on after an underscore: only exact names count.
    for line in metrics.splitlines():
        if line.startswith("vllm:"):
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            yield name, labels, float(value)
