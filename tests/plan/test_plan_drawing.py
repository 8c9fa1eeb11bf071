"""How a plan is drawn."""

from __future__ import annotations

from dataclasses import replace

from local_vllm.plan.cluster import Cluster, Node
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
.   free   #   in use by others"""


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


def test_a_painter_sees_every_cell_of_its_server():
    picture = cluster(8)
    placements = plan_placements(picture, SERVERS[:1])
    painted = draw_placements(picture, placements, paint=lambda text, server: f"<{server}:{text}>")
    assert painted.splitlines()[0].count("<0:A0>") == 4
    assert painted.splitlines()[0].count("<0:A1>") == 4


def test_letters_go_on_after_z():
    assert [letter(index) for index in (0, 25, 26, 27, 51, 52)] == ["A", "Z", "AA", "AB", "AZ", "BA"]
