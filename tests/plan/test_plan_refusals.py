"""What is said when servers do not fit: one sentence, with the numbers, and a way out that was tried."""

from __future__ import annotations

import pytest

from local_vllm.errors import PlacementError
from local_vllm.plan.cluster import Cluster, Holding, Node
from local_vllm.plan.placement import plan_placements
from local_vllm.plan.topology import PackStrategy, Topology


def cluster(*free: int, cpus: float = 64) -> Cluster:
    return Cluster(tuple(Node(f"n{i}", f"10.0.0.{i + 1}", 8, gpus, 64, cpus) for i, gpus in enumerate(free)))


def server(
    name: str, dp: int, tp: int, pp: int = 1, strategy: str = "strict", local: int | None = None
) -> Topology:
    return Topology(name, dp, tp, pp, PackStrategy(strategy), local)


def refusal(nodes: Cluster, *servers: Topology, **options: int) -> str:
    with pytest.raises(PlacementError) as caught:
        plan_placements(nodes, servers, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_rank_too_large_for_every_node_names_the_largest_free_block():
    text = refusal(cluster(2, 4, 2), server("a", 1, 4, 2))
    assert text.startswith(
        "a: TP 4 x PP 2 needs 8 GPUs on one node under strict; the largest free block is 4, on 10.0.0.2"
    )


def test_span_is_offered_where_it_would_fit():
    assert "what would fit: strategy span" in refusal(cluster(8, 8), server("a", 1, 16))


def test_fill_is_offered_where_it_would_fit():
    assert "what would fit: strategy fill" in refusal(cluster(4, 2), server("a", 3, 2))


def test_a_smaller_tensor_parallel_size_and_fewer_ranks_are_offered():
    text = refusal(cluster(8), server("a", 2, 8))
    assert "tensor_parallel_size 4, or data_parallel_size 1" in text


def test_a_wish_for_local_ranks_that_stands_in_the_way_is_named():
    text = refusal(cluster(2, 2), server("a", 2, 2, local=2))
    assert "2 on each node under strict" in text
    assert "what would fit: no data_parallel_size_local" in text


def test_span_that_fits_on_one_node_is_refused_with_strict():
    text = refusal(cluster(8, 8), server("a", 1, 8, strategy="span"))
    assert "8 are free on one node" in text
    assert "set VLLM_RAY_DP_PACK_STRATEGY to strict" in text


def test_span_over_unlike_nodes_says_what_is_free_where():
    assert "free are 8 on 1 node, 6 on 2 nodes" in refusal(
        cluster(8, 6, 6), server("a", 1, 16, strategy="span")
    )


def test_missing_cpus_are_counted():
    text = refusal(cluster(8, 8, cpus=1), server("a", 4, 4))
    assert "4 blocks are free, 2 of them with a CPU" in text


def test_a_server_that_lacks_room_beside_others_names_them():
    text = refusal(cluster(8), server("small", 1, 4), server("large", 1, 8))
    assert text.startswith("small: TP 4 needs 4 GPUs on one node under strict; no GPU is free; ")
    assert "the rest is taken by large (8 GPUs)" in text


def test_those_who_hold_the_gpus_are_named():
    node = Node("n", "10.0.0.1", 8, 2, 8, 8, holdings=(Holding("run 7f3a", 4),))
    assert "GPUs in use: 4 by run 7f3a and 2 by others" in refusal(Cluster((node,)), server("a", 1, 8))


def test_nodes_left_out_for_a_shared_address_are_counted():
    twins = tuple(Node(f"n{i}", "10.0.0.9", 8, 8, 8, 8) for i in range(2))
    assert "2 nodes that share an address are left out" in refusal(Cluster(twins), server("a", 1, 8))


def test_a_cluster_without_nodes_is_refused_like_any_other():
    assert "no GPU is free" in refusal(Cluster(()), server("a", 1, 1))


def test_a_search_that_ended_early_says_so():
    text = refusal(cluster(4, 2, 2), server("a", 1, 4), server("b", 4, 1, local=1), tries=1)
    assert "the search ended after 1 tries, so a plan may exist" in text


@pytest.mark.parametrize(("dp", "local"), [(2, 3), (2, 0)])
def test_a_local_size_outside_the_ranks_is_refused(dp: int, local: int):
    with pytest.raises(PlacementError, match=f"data_parallel_size_local is {local}; it must be from 1 to"):
        server("a", dp, 1, local=local)
