"""How a plan is drawn."""

from __future__ import annotations

from dataclasses import replace

from local_vllm.plan.cluster import Cluster, Holding, Node
from local_vllm.plan.drawing import draw_placements, letter
from local_vllm.plan.placement import plan_placements
from local_vllm.plan.topology import PackStrategy, Topology


def cluster(*free: int) -> Cluster:
    return Cluster(tuple(Node(f"n{i}", f"10.0.0.{i + 1}", 8, gpus, 64, 64) for i, gpus in enumerate(free)))


SERVERS = [
    Topology("policy", 2, 4, 1, PackStrategy.STRICT),
    Topology("large", 1, 16, 1, PackStrategy.SPAN),
    Topology("judge", 1, 2, 1, PackStrategy.STRICT),
]
DRAWING = """\
10.0.0.1  B0 B0 B0 B0 B0 B0 B0 B0
10.0.0.2  B0 B0 B0 B0 B0 B0 B0 B0
10.0.0.3  C0 C0 .  .  #  #  #  #
10.0.0.4  A0 A0 A0 A0 A1 A1 A1 A1
10.0.0.5  .  .  .  .  .  .  .  .

A   policy: DP 2 x TP 4, strict, 8 GPUs on 1 node, rank 0 on 10.0.0.4
B   large: DP 1 x TP 16, span, 16 GPUs on 2 nodes, rank 0 on 10.0.0.1
C   judge: DP 1 x TP 2, strict, 2 GPUs on 1 node, rank 0 on 10.0.0.3
.   free: 10
#   in use by others: 4"""


def test_nodes_are_rows_and_gpus_are_cells():
    picture = cluster(8, 8, 4, 8, 8)
    assert draw_placements(picture, plan_placements(picture, SERVERS)) == DRAWING


def test_a_launched_plan_is_drawn_as_it_was_planned():
    before = cluster(8, 8, 4, 8, 8)
    placements = plan_placements(before, SERVERS)
    free = {"n0": 0, "n1": 0, "n2": 2, "n3": 0, "n4": 8}
    after = Cluster(tuple(replace(node, gpus_free=free[node.node_id]) for node in before.nodes))
    assert draw_placements(after, placements, launched=True) == DRAWING


def test_nodes_that_look_the_same_are_counted():
    picture = cluster(*[8] * 100)
    text = draw_placements(picture, plan_placements(picture, SERVERS[:1]))
    assert "...         and 96 more like it, to 10.0.0.100" in text
    assert len(text.splitlines()) < 10


def test_rows_of_ours_that_look_the_same_are_counted_too():
    picture = cluster(*[8] * 64)
    wide = Topology("wide", 2, 128, 1, PackStrategy.SPAN)
    lines = draw_placements(picture, plan_placements(picture, [wide])).splitlines()
    assert lines[2] == "10.0.0.3   A0 A0 A0 A0 A0 A0 A0 A0"
    assert lines[3] == "...        and 13 more like it, to 10.0.0.16"
    assert lines[4] == "10.0.0.17  A1 A1 A1 A1 A1 A1 A1 A1"


def test_a_plan_of_64_nodes_is_read_at_one_glance():
    picture = cluster(*[8] * 64)
    servers = [
        Topology("policy", 16, 8, 1, PackStrategy.STRICT),
        Topology("large", 2, 128, 1, PackStrategy.SPAN),
        Topology("judge", 4, 2, 1, PackStrategy.STRICT),
    ]
    lines = draw_placements(picture, plan_placements(picture, servers), width=80).splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 80


def test_rows_wider_than_the_page_are_counted_instead():
    picture = cluster(8, 4)
    placements = plan_placements(picture, SERVERS[:1])
    assert draw_placements(picture, placements, width=33) == draw_placements(picture, placements)
    counted = draw_placements(picture, placements, width=32).splitlines()
    assert counted[:2] == ["10.0.0.1  A0 x4  A1 x4", "10.0.0.2  . x4  # x4"]


def test_a_node_without_gpus_is_a_row_that_says_so():
    picture = Cluster((Node("head", "head", 0, 0, 4, 4), Node("n1", "n1", 1, 1, 4, 4)))
    assert draw_placements(picture, []).splitlines()[:2] == ["head  no GPUs", "n1    ."]


def test_the_holders_of_gpus_in_use_are_named():
    held = (Holding("judge of run 7f3a", 3),)
    picture = Cluster((replace(cluster(4).nodes[0], holdings=held),))
    assert draw_placements(picture, []).endswith("#   in use by others: 4 (3 by judge of run 7f3a)")


def test_a_painter_sees_every_cell_of_its_server():
    picture = cluster(8)
    placements = plan_placements(picture, SERVERS[:1])
    painted = draw_placements(picture, placements, paint=lambda text, server: f"<{server}:{text}>")
    assert painted.splitlines()[0].count("<0:A0>") == 4
    assert painted.splitlines()[0].count("<0:A1>") == 4


def test_letters_go_on_after_z():
    assert [letter(index) for index in (0, 25, 26, 27, 51, 52)] == ["A", "Z", "AA", "AB", "AZ", "BA"]
