"""Measures targets in turn, round by round, so that what changes on the machine meanwhile changes for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import uvloop

from benchmarks.accounting import snapshot, used, without_idle
from benchmarks.answers import problem
from benchmarks.closed_loop import Offered, offer
from benchmarks.scenarios import Scenario
from benchmarks.targets import Target

WARM_UP_S = 0.7
# Before the first round: until stores of responses are full and the memory that is needed has been had once.
FIRST_WARM_UP_S = 4.0
CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is measured: so many rounds of so many seconds for each target and scenario."""

    rounds: int = 3
    seconds: float = 2.0

    @property
    def warm_up_s(self) -> float:
        return min(WARM_UP_S, self.seconds)

    @property
    def first_warm_up_s(self) -> float:
        return min(FIRST_WARM_UP_S, 4 * self.seconds)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one target in one scenario. `cpu_ms` is for a request, all its processes together, what they use while idle
    taken off; `problem` says what was wrong with an answer."""

    cpu_ms: float
    p50_ms: float
    p99_ms: float
    per_second: float
    requests: int
    errors: int = 0
    problem: str | None = None
    cpu_ms_by_role: Mapping[str, float] = field(default_factory=dict)


def interleaved(
    targets: Sequence[Target], scenario: Scenario, pace: Pace, connections: int = CONCURRENCY
) -> dict[str, Figures]:
    """By the targets' names, the medians of the rounds."""
    found: dict[str, list[Figures]] = {target.name: [] for target in targets}
    for target in targets:
        url, body = target.asked(scenario)
        uvloop.run(offer(url, body, connections, seconds=pace.first_warm_up_s, headers=target.headers))
    for _ in range(pace.rounds):
        for target in targets:
            found[target.name].append(uvloop.run(_measure(target, scenario, pace, connections)))
    return {name: medians(rounds) for name, rounds in found.items()}


async def _measure(target: Target, scenario: Scenario, pace: Pace, connections: int) -> Figures:
    """After a warm-up a number of requests is settled, so that the CPU time is that of whole requests."""
    url, body = target.asked(scenario)
    warm = await offer(url, body, connections, seconds=pace.warm_up_s, headers=target.headers)
    if not warm.latencies_s:
        return failed(warm.error or "no answer")
    requests = max(2 * connections, int(len(warm.latencies_s) / warm.took_s * pace.seconds))
    before = snapshot(target.pids)
    done = await offer(url, body, connections, requests=requests, headers=target.headers)
    net = without_idle(used(before, snapshot(target.pids)), target.idle, done.took_s)
    return figures(done, net, problem(scenario, target.api, done.answer) if done.answer else None)


def figures(done: Offered, seconds: Counter, wrong: str | None) -> Figures:
    count = len(done.latencies_s)
    if not count:
        return failed(done.error)
    return Figures(
        cpu_ms=1000 * sum(seconds.values()) / count,
        p50_ms=done.ms(0.5),
        p99_ms=done.ms(0.99),
        per_second=count / done.took_s,
        requests=count,
        errors=done.errors,
        problem=wrong or done.error or None,
        cpu_ms_by_role={name: 1000 * used_s / count for name, used_s in seconds.items()},
    )


def failed(why: str) -> Figures:
    nothing = float("nan")
    return Figures(nothing, nothing, nothing, 0.0, 0, errors=1, problem=why)


def medians(rounds: Sequence[Figures]) -> Figures:
    """Of what is a time; requests and errors are summed up, and any problem is one."""
    roles = {name for each in rounds for name in each.cpu_ms_by_role}
    return Figures(
        *(median(getattr(each, name) for each in rounds) for name in ("cpu_ms", "p50_ms", "p99_ms", "per_second")),
        requests=sum(each.requests for each in rounds),
        errors=sum(each.errors for each in rounds),
        problem=next((each.problem for each in rounds if each.problem), None),
        cpu_ms_by_role={name: median(each.cpu_ms_by_role.get(name, 0.0) for each in rounds) for name in sorted(roles)},
    )
