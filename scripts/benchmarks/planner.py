"""The planner's time, on one core: many servers on many nodes of 8 GPUs.

Cases: `fresh`, a cluster with nothing on it; `worn`, one where other runs hold part of every second node; `refused`,
servers that do not fit, with the search for what would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks.table import Row
from local_vllm.errors import PlacementError
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import plan_placements
from local_vllm.plan.topology import PackStrategy, Topology

NODES, SERVERS, ROUNDS = 1024, 64, 9
REFUSED = "refused"
# Of a plan; a refusal has no mark.
MARK_MS = 100.0


@dataclass(frozen=True, slots=True)
class Took:
    nodes: int
    case: str
    median_ms: float
    worst_ms: float


def rows() -> Iterator[Row]:
    for took in times([NODES], SERVERS, ROUNDS):
        figures = {"worst_ms": took.worst_ms, "nodes": NODES, "servers": SERVERS}
        mark = None if took.case == REFUSED else MARK_MS
        yield Row(f"planner: {took.case}", "ms", took.median_ms, mark, figures=figures)


def times(nodes: Sequence[int], count: int, rounds: int) -> Iterator[Took]:
    """For each number of nodes and each case."""
    for number in nodes:
        cases = {
            "fresh": (cluster(number), servers(count)),
            "worn": (cluster(number, worn=True), servers(count)),
            REFUSED: (cluster(number, worn=True), [*servers(count), too_large(number)]),
        }
        for case, (picture, wanted) in cases.items():
            yield Took(number, case, *times_ms(partial(plan_placements, picture, wanted), rounds))


def cluster(nodes: int, *, worn: bool = False) -> Cluster:
    def free(index: int) -> int:
        return (8, 4, 8, 2, 8, 6)[index % 6] if worn else 8

    return Cluster(
        tuple(Node(f"n{i}", f"10.0.{i // 250}.{i % 250 + 1}", 8, free(i), 64, 64) for i in range(nodes))
    )


def servers(count: int) -> list[Topology]:
    kinds = [
        (1, 4, 1, PackStrategy.STRICT),
        (1, 8, 1, PackStrategy.STRICT),
        (1, 8, 2, PackStrategy.SPAN),
        (4, 2, 1, PackStrategy.STRICT),
        (2, 8, 1, PackStrategy.STRICT),
        (5, 2, 1, PackStrategy.FILL),
        (1, 1, 1, PackStrategy.STRICT),
        (2, 8, 2, PackStrategy.SPAN),
    ]
    return [Topology(f"server{i}", *kinds[i % len(kinds)]) for i in range(count)]


def too_large(nodes: int) -> Topology:
    """As many ranks as there are nodes, which leaves no room for any other server."""
    return Topology("large", nodes, 8, 1, PackStrategy.STRICT)


def times_ms(plan: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median and worst."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        with suppress(PlacementError):
            plan()
        found.append((time.perf_counter() - start) * 1e3)
    return median(found), max(found)
