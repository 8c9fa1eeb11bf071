"""The sample topologies that users are shown, and the shape of a plan."""

from __future__ import annotations

import pytest

from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import Placement, plan_placements
from local_vllm.plan.topology import PackStrategy, Topology
from local_vllm.plan.vllm_flags import placement_env, placement_flags


def cluster(*free: int, total: int = 8, cpus: float = 64) -> Cluster:
    return Cluster(
        tuple(Node(f"n{i + 1}", f"10.0.0.{i + 1}", total, gpus, cpus, cpus) for i, gpus in enumerate(free))
    )


def server(
    name: str, dp: int, tp: int, pp: int = 1, strategy: str = "strict", local: int | None = None
) -> Topology:
    return Topology(name, dp, tp, pp, PackStrategy(strategy), local)


def rows(placements: tuple[Placement, ...]) -> list[dict[str, int]]:
    return [placement.gpus_by_node for placement in placements]


@pytest.mark.parametrize(
    ("free", "servers", "expected", "local"),
    [
        pytest.param([8], [server("a", 1, 8)], [{"n1": 8}], [None], id="1 node, TP=8"),
        pytest.param([8], [server("a", 2, 4)], [{"n1": 8}], [2], id="1 node, DP=2 TP=4"),
        pytest.param(
            [8],
            [server("a", 1, 4), server("b", 1, 4)],
            [{"n1": 4}, {"n1": 4}],
            [None, None],
            id="1 node, 2 x TP=4",
        ),
        pytest.param([8, 8], [server("a", 2, 8)], [{"n1": 8, "n2": 8}], [1], id="2 nodes, DP=2 TP=8"),
        pytest.param(
            [8, 8],
            [server("a", 1, 8), server("b", 1, 8)],
            [{"n1": 8}, {"n2": 8}],
            [None, None],
            id="2 nodes, 2 x TP=8",
        ),
        pytest.param(
            [8, 8], [server("a", 1, 16, 1, "span")], [{"n1": 8, "n2": 8}], [None], id="2 nodes, TP=16 span"
        ),
        pytest.param(
            [8] * 4,
            [server("a", 2, 8, 2, "span")],
            [{"n1": 8, "n2": 8, "n3": 8, "n4": 8}],
            [None],
            id="4 nodes, DP=2 of 16 span",
        ),
        pytest.param(
            [8] * 4,
            [server("a", 1, 16, 1, "span"), server("b", 1, 16, 1, "span")],
            [{"n1": 8, "n2": 8}, {"n3": 8, "n4": 8}],
            [None, None],
            id="4 nodes, 2 x 16 span",
        ),
        pytest.param(
            [0, 8, 8], [server("a", 2, 8)], [{"n2": 8, "n3": 8}], [1], id="a head without GPUs and two nodes"
        ),
        pytest.param(
            [8, 8],
            [server("a", 1, 4), server("b", 1, 8), server("c", 1, 4)],
            [{"n2": 4}, {"n1": 8}, {"n2": 4}],
            [None] * 3,
            id="2 x TP=4 beside TP=8",
        ),
    ],
)
def test_a_sample_topology_lands_where_it_is_drawn(free, servers, expected, local):
    placements = plan_placements(cluster(*free), servers)
    assert rows(placements) == expected
    assert [placement.data_parallel_size_local for placement in placements] == local


def test_a_server_takes_the_tightest_opened_node_and_leaves_whole_ones_alone():
    assert rows(plan_placements(cluster(8, 6, 4, 2), [server("a", 1, 4)])) == [{"n3": 4}]


def test_ranks_share_as_few_nodes_as_they_fit():
    (placement,) = plan_placements(cluster(4, 4, 8, 8), [server("a", 4, 4)])
    assert placement.gpus_by_node == {"n3": 8, "n4": 8}
    assert placement.data_parallel_size_local == 2


def test_a_users_data_parallel_size_local_is_kept():
    (placement,) = plan_placements(cluster(8, 8, 8, 8), [server("a", 4, 2, local=1)])
    assert placement.data_parallel_size_local == 1
    assert len(placement.gpus_by_node) == 4


def test_span_leaves_data_parallel_size_local_unset_whatever_the_user_wrote():
    (placement,) = plan_placements(cluster(8, 8, 8, 8), [server("a", 2, 16, strategy="span", local=2)])
    assert placement.data_parallel_size_local is None
    assert "data_parallel_size_local" not in placement_flags(placement)


def test_fill_takes_an_uneven_cluster_that_strict_cannot():
    (placement,) = plan_placements(cluster(4, 2), [server("a", 3, 2, strategy="fill")])
    assert placement.gpus_by_node == {"n1": 4, "n2": 2}


def test_span_waits_for_a_strict_server_that_makes_the_nodes_alike():
    strict, span = plan_placements(cluster(6, 4), [server("a", 1, 2), server("b", 1, 8, strategy="span")])
    assert strict.gpus_by_node == {"n1": 2}
    assert strict.launch_order < span.launch_order


def test_the_order_of_the_nodes_makes_no_difference():
    nodes = cluster(8, 4, 8, 2, 8).nodes
    servers = [server("a", 2, 4), server("b", 1, 16, strategy="span"), server("c", 1, 2)]
    assert plan_placements(Cluster(nodes), servers) == plan_placements(Cluster(nodes[::-1]), servers)


def test_addresses_are_taken_in_the_order_a_person_counts_them():
    nodes = tuple(Node(str(i), f"10.0.0.{i}", 8, 8, 8, 8) for i in (10, 9, 2))
    (placement,) = plan_placements(Cluster(nodes), [server("a", 2, 8)])
    assert placement.allowed_addresses == ("10.0.0.2", "10.0.0.9")


def test_nodes_that_share_an_address_are_not_used():
    nodes = (*cluster(8).nodes, *(Node(f"twin{i}", "10.0.0.9", 8, 8, 8, 8) for i in range(2)))
    assert rows(plan_placements(Cluster(nodes), [server("a", 1, 8)])) == [{"n1": 8}]


def test_an_engine_keeps_to_one_accelerator_while_it_can():
    kinds = ["H100", "A100", "H100", "A100"]
    nodes = tuple(Node(f"n{i}", f"10.0.0.{i}", 8, 8, 8, 8, accelerator=kind) for i, kind in enumerate(kinds))
    (placement,) = plan_placements(Cluster(nodes), [server("a", 1, 16, strategy="span")])
    assert set(placement.gpus_by_node) in ({"n0", "n2"}, {"n1", "n3"})


def test_a_rank_of_span_is_drawn_over_whole_nodes():
    (placement,) = plan_placements(cluster(8, 8, 8, 8), [server("a", 2, 16, strategy="span")])
    assert [[slot.node_id for slot in rank.slots] for rank in placement.ranks] == [["n1", "n2"], ["n3", "n4"]]


def test_vllm_is_told_the_master_twice_because_it_reads_one_or_the_other():
    (one,) = plan_placements(cluster(0, 8), [server("a", 1, 8)])
    (two,) = plan_placements(cluster(0, 8), [server("a", 2, 4)])
    assert placement_env(one)["VLLM_DP_MASTER_IP"] == "10.0.0.2"
    assert placement_flags(two)["data_parallel_address"] == "10.0.0.2"


def test_vllm_is_told_the_strategy_and_its_nodes():
    (placement,) = plan_placements(cluster(8, 8), [server("a", 2, 8)])
    env = placement_env(placement)
    assert env["VLLM_RAY_DP_PACK_STRATEGY"] == "strict"
    assert env["VLLM_RAY_DP_PLACEMENT_NODE_IPS"] == "10.0.0.1,10.0.0.2"
