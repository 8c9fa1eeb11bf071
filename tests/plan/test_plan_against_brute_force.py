"""The planner against brute force: every master, set of nodes and flags, for every order vLLM may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_vllm.errors import PlacementError
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import Placement, plan_placements
from local_vllm.plan.topology import PackStrategy, Topology
from local_vllm.plan.vllm_placement import Placed, Told, settled, told


def node(index: int, gpus: int, cpus: int) -> Node:
    return Node(f"n{index}", f"10.0.0.{index + 1}", 8, gpus, 8, cpus)


def orders(nodes: Sequence[Node], flags: Told) -> Iterator[Sequence[Node]]:
    """Every order of the nodes that count; those that are not allowed vLLM never looks at."""
    kept = [n for n in nodes if n.address in flags.allowed_addresses]
    return permutations(kept)


def left_after(nodes: Sequence[Node], outcomes: Sequence[Placed]) -> tuple[Node, ...]:
    """What surely remains: a CPU that some order takes is gone."""
    cpus: Counter[str] = Counter()
    for outcome in outcomes:
        cpus |= Counter(outcome.cpus_by_node)
    gpus = outcomes[0].gpus_by_node
    return tuple(
        replace(n, gpus_free=n.gpus_free - gpus.get(n.node_id, 0), cpus_free=n.cpus_free - cpus[n.node_id])
        for n in nodes
    )


def every_telling(nodes: Sequence[Node], topology: Topology) -> Iterator[Told]:
    wish = topology.data_parallel_size_local
    sizes = range(1, topology.data_parallel_size + 1) if wish is None else (wish,)
    locals_ = (None,) if topology.strategy is PackStrategy.SPAN else sizes
    addresses = [n.address for n in nodes]
    for count in range(1, len(addresses) + 1):
        for allowed in combinations(addresses, count):
            for master in allowed:
                for local in locals_:
                    yield Told(
                        topology.strategy,
                        topology.world_size,
                        topology.data_parallel_size,
                        local,
                        master,
                        allowed,
                    )


def span_without_need(nodes: Sequence[Node], topologies: Sequence[Topology]) -> bool:
    most = max(n.gpus_free for n in nodes)
    return any(t.strategy is PackStrategy.SPAN and t.world_size <= most for t in topologies)


def exists(nodes: tuple[Node, ...], topologies: tuple[Topology, ...], seen: dict) -> bool:
    """Whether vLLM can be told so that all of them come up, in some order of launches."""
    if not topologies:
        return True
    alike = tuple(sorted((n.gpus_free, n.cpus_free) for n in nodes)), topologies
    if alike not in seen:
        seen[alike] = any(
            exists(left_after(nodes, outcomes), topologies[:first] + topologies[first + 1 :], seen)
            for first in range(len(topologies))
            for flags in every_telling(nodes, topologies[first])
            if (outcomes := settled(orders(nodes, flags), flags))
        )
    return seen[alike]


def few_orders(nodes: Sequence[Node], flags: Told) -> Iterator[Sequence[Node]]:
    """For large clusters: forwards, backwards, and from the middle."""
    middle = len(nodes) // 2
    yield from (nodes, nodes[::-1], (*nodes[middle:], *nodes[:middle]))


def replay(nodes: tuple[Node, ...], placements: Sequence[Placement], orders_of=orders) -> tuple[Node, ...]:
    """Launches the plan on the model, in launch order, for each order of the nodes."""
    for placement in sorted(placements, key=lambda p: p.launch_order):
        outcomes = settled(orders_of(nodes, told(placement)), told(placement))
        assert outcomes, f"vLLM does not settle on {placement}"
        assert outcomes[0].gpus_by_node == placement.gpus_by_node
        nodes = left_after(nodes, outcomes)
    return nodes


GPUS, CPUS = st.integers(0, 4), st.sampled_from([0, 1, 2, 8, 8, 8])
some_nodes = st.lists(st.tuples(GPUS, CPUS), min_size=1, max_size=4).map(
    lambda sizes: tuple(node(i, gpus, cpus) for i, (gpus, cpus) in enumerate(sizes))
)


@st.composite
def nodes_and_servers(draw: st.DrawFn) -> tuple[tuple[Node, ...], tuple[Topology, ...]]:
    """Servers that together ask for hardly more GPUs than there are, so that the packing is what decides."""
    nodes = draw(some_nodes)
    free, servers = sum(n.gpus_free for n in nodes), []
    for index in range(draw(st.integers(1, 3))):
        strategy = draw(st.sampled_from(list(PackStrategy)))
        sizes = [2, 4, 6, 8] if strategy is PackStrategy.SPAN else [1, 2, 3, 4]
        size = draw(st.sampled_from([s for s in sizes if s <= free] or sizes[:1]))
        ranks = draw(st.integers(1, max(1, min(5, free // size))))
        local = draw(st.none() | st.none() | st.integers(1, ranks))
        servers.append(Topology(f"s{index}", ranks, size, 1, strategy, local))
        free -= ranks * size
    return nodes, tuple(servers)


@settings(max_examples=1000, deadline=None)
@given(nodes_and_servers())
def test_a_plan_is_found_exactly_when_vllm_can_realise_one(case):
    nodes, servers = case
    possible = not span_without_need(nodes, servers) and exists(nodes, servers, {})
    try:
        placements = plan_placements(Cluster(nodes), servers)
    except PlacementError:
        assert not possible
    else:
        assert possible
        replay(nodes, placements)


@settings(max_examples=300, deadline=None)
@given(nodes_and_servers())
def test_no_gpu_is_given_twice_and_every_rank_is_whole(case):
    nodes, servers = case
    try:
        placements = plan_placements(Cluster(nodes), servers)
    except PlacementError:
        return
    taken: Counter[str] = Counter()
    for placement in placements:
        taken.update(placement.gpus_by_node)
        for rank in placement.ranks:
            assert sum(slot.gpus for slot in rank.slots) == placement.topology.world_size
            assert (len(rank.slots) > 1) == (placement.topology.strategy is PackStrategy.SPAN)
    assert all(taken[n.node_id] <= n.gpus_free for n in nodes)
    assert sorted(p.launch_order for p in placements) == list(range(len(placements)))


def servers(*sizes: tuple[int, int, str]) -> list[Topology]:
    return [Topology(f"s{i}", dp, tp, 1, PackStrategy(name)) for i, (dp, tp, name) in enumerate(sizes)]


def nodes_of(free: Sequence[int], cpus: Sequence[int]) -> tuple[Node, ...]:
    return tuple(node(i, gpus, c) for i, (gpus, c) in enumerate(zip(free, cpus, strict=True)))


@pytest.mark.parametrize(
    ("free", "cpus", "asked"),
    [
        pytest.param(
            [2, 3, 4], [8] * 3, [(2, 2, "strict"), (5, 1, "strict")], id="an uneven strict goes first"
        ),
        pytest.param([6, 7, 7], [8] * 3, [(4, 3, "fill"), (4, 2, "fill")], id="the smaller fill goes first"),
        pytest.param(
            [3, 4], [8] * 2, [(1, 1, "strict"), (1, 6, "span")], id="strict makes nodes alike for span"
        ),
        pytest.param([4, 4, 4], [8, 8, 1], [(5, 2, "fill")], id="fill starts where a CPU is missing"),
        pytest.param([4, 4], [0, 1], [(1, 8, "span")], id="span starts where the CPU is"),
    ],
)
def test_a_plan_that_is_hard_to_find_is_found(free, cpus, asked):
    nodes = nodes_of(free, cpus)
    replay(nodes, plan_placements(Cluster(nodes), servers(*asked)))


@pytest.mark.parametrize(
    ("free", "cpus", "asked"),
    [
        pytest.param([4, 4, 4], [8, 8, 1], [(6, 2, "fill")], id="fill without a CPU for every rank"),
        pytest.param(
            [1, 1, 1, 1], [8, 8, 8, 0], [(2, 2, "span")], id="span that may start a rank without a CPU"
        ),
        pytest.param([4, 4, 4], [8] * 3, [(5, 2, "strict")], id="five ranks on three nodes of two"),
        pytest.param([2, 1], [8] * 2, [(3, 1, "strict")], id="a last node without full room"),
    ],
)
def test_a_plan_that_vllm_might_miss_is_not_made(free, cpus, asked):
    nodes = nodes_of(free, cpus)
    with pytest.raises(PlacementError):
        plan_placements(Cluster(nodes), servers(*asked))


@st.composite
def servers_that_divide_a_node(draw: st.DrawFn) -> tuple[tuple[Node, ...], list[Topology]]:
    """Whole nodes of 8 GPUs, and servers in powers of two up to the last GPU."""
    count = draw(st.integers(1, 40))
    left, wanted = 8 * count, []
    while left:
        spans = left >= 32 and draw(st.integers(0, 3)) == 0
        size = draw(st.sampled_from([s for s in ([16, 32] if spans else [1, 2, 4, 8]) if s <= left]))
        ranks = draw(st.sampled_from([r for r in (1, 1, 2, 4, 8) if r * size <= left]))
        name = "span" if spans else draw(st.sampled_from(["strict", "strict", "fill"]))
        wanted.append((ranks, size, name))
        left -= ranks * size
    return nodes_of([8] * count, [64] * count), servers(*wanted)


@settings(max_examples=60, deadline=None)
@given(servers_that_divide_a_node())
def test_whole_nodes_are_filled_to_the_last_gpu_by_sizes_that_divide_them(case):
    nodes, wanted = case
    left = replay(nodes, plan_placements(Cluster(nodes), wanted), few_orders)
    assert sum(n.gpus_free for n in left) == 0
