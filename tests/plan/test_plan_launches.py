"""Which engines of a plan are launched side by side, and that vLLM then places each as it was planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from local_vllm.errors import PlacementError
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.launches import launched_after, takes_the_same
from local_vllm.plan.placement import Placement, plan_placements
from local_vllm.plan.topology import PackStrategy, Topology
from local_vllm.plan.vllm_placement import Placed, told, vllm_placement


def nodes_of(*gpus: int) -> tuple[Node, ...]:
    return tuple(Node(f"n{i}", f"10.0.0.{i + 1}", 8, free, 64, 64) for i, free in enumerate(gpus))


def planned(gpus: Sequence[int], *asked: tuple[int, int, str]) -> tuple[Placement, ...]:
    """Servers of so many ranks of so many GPUs, and how they are packed."""
    servers = [Topology(f"s{i}", dp, tp, 1, PackStrategy(name)) for i, (dp, tp, name) in enumerate(asked)]
    return plan_placements(Cluster(nodes_of(*gpus)), servers)


@pytest.mark.parametrize(
    ("gpus", "asked", "waits"),
    [
        pytest.param([8], [(1, 4, "strict")], [set()], id="the only one"),
        pytest.param([8], [(1, 4, "strict"), (1, 4, "strict")], [set(), set()], id="two on one node"),
        pytest.param([8], [(2, 1, "fill"), (3, 2, "strict")], [set(), set()], id="several ranks on one node"),
        pytest.param([8, 8], [(1, 8, "strict"), (1, 8, "strict")], [set(), set()], id="a node each"),
        pytest.param([4, 4], [(2, 2, "strict"), (4, 1, "strict")], [set(), set()], id="as many ranks of each node"),
        pytest.param([4, 4, 4, 4], [(1, 8, "span"), (1, 8, "span")], [set(), set()], id="spans of other nodes"),
        pytest.param([4, 4], [(3, 2, "fill"), (1, 2, "strict")], [set(), set()], id="a fill with one further node"),
        pytest.param([3, 4], [(1, 1, "strict"), (1, 6, "span")], [set(), {0}], id="a span takes what is left"),
        pytest.param(
            [2, 3, 4], [(2, 2, "strict"), (5, 1, "strict")], [{1}, set()], id="an uneven strict needs more than it takes"
        ),
        pytest.param([6, 7, 7], [(4, 3, "fill"), (4, 2, "fill")], [{1}, set()], id="a fill with two further nodes"),
    ],
)
def test_an_engine_waits_for_those_that_leave_it_what_it_takes(
    gpus: list[int], asked: list[tuple[int, int, str]], waits: list[set[int]]
) -> None:
    assert [set(those) for those in launched_after(planned(gpus, *asked))] == waits


@st.composite
def nodes_and_servers(draw: st.DrawFn) -> tuple[tuple[Node, ...], list[Topology]]:
    """Servers that together ask for about as many GPUs as there are."""
    nodes = nodes_of(*draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    free, servers = sum(node.gpus_free for node in nodes), []
    while free > 0 and len(servers) < 4:
        sizes = [size for size in range(1, free + 1) if size <= 4 or size % 2 == 0]
        size = draw(st.sampled_from(sizes))
        most = max(node.gpus_free for node in nodes)
        ways = [PackStrategy.SPAN] if size > most else [PackStrategy.STRICT, PackStrategy.FILL]
        ranks = draw(st.integers(1, free // size))
        servers.append(Topology(f"s{len(servers)}", ranks, size, 1, draw(st.sampled_from(ways))))
        free -= ranks * size
    return nodes, servers


def without(nodes: Sequence[Node], taken: Counter[str]) -> tuple[Node, ...]:
    return tuple(replace(node, gpus_free=node.gpus_free - taken[node.node_id]) for node in nodes)


@settings(max_examples=100, deadline=None)
@given(nodes_and_servers(), st.data())
def test_launched_side_by_side_each_engine_comes_to_lie_as_planned(case, data: st.DataObject) -> None:
    """Whatever part of their GPUs the others have taken by the time that it looks, and in whatever order it meets the
    nodes.
    """
    nodes, servers = case
    try:
        placements = plan_placements(Cluster(nodes), servers)
    except PlacementError:
        assume(False)
    waits = launched_after(placements)
    looking: set[int] = set()
    left = set(range(len(placements)))
    taken: Counter[str] = Counter()
    has: dict[int, Counter[str]] = {index: Counter() for index in left}
    while left | looking:
        ready = sorted({i for i in left if not waits[i] & (left | looking)} | looking)
        assert ready, "somebody can always be launched"
        index = data.draw(st.sampled_from(ready))
        placement = placements[index]
        planned_gpus = Counter(placement.gpus_by_node)
        if index in left:
            order = data.draw(st.permutations(without(nodes, taken)))
            outcome = vllm_placement(order, told(placement))
            assert isinstance(outcome, Placed)
            assert outcome.gpus_by_node == placement.gpus_by_node
            left.remove(index)
            looking.add(index)
            continue
        # Its groups come one after another.
        rest = planned_gpus - has[index]
        node_id = data.draw(st.sampled_from(sorted(rest)))
        now = data.draw(st.integers(1, rest[node_id]))
        has[index][node_id] += now
        taken[node_id] += now
        if has[index] == planned_gpus:
            looking.remove(index)
    assert without(nodes, taken) == without(nodes, sum((Counter(p.gpus_by_node) for p in placements), Counter()))


def test_all_engines_on_a_node_of_their_own_or_within_one_take_the_same() -> None:
    assert all(map(takes_the_same, planned([8, 8], (2, 4, "strict"), (4, 1, "fill"), (1, 4, "strict"))))
