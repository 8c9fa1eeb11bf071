"""What vLLM makes of given flags: the facts our model of its placement has to state."""

from __future__ import annotations

from itertools import permutations

import pytest

from local_vllm.plan.cluster import Node
from local_vllm.plan.topology import PackStrategy
from local_vllm.plan.vllm_placement import Placed, Refused, Stuck, Told, settled, vllm_placement

STRICT, FILL, SPAN = PackStrategy


def nodes(*free: int, cpus: float = 8) -> list[Node]:
    return [Node(f"n{i + 1}", f"10.0.0.{i + 1}", 8, gpus, 8, cpus) for i, gpus in enumerate(free)]


def asked(
    strategy: PackStrategy, dp: int, size: int, local: int | None = None, master: int = 1, **more
) -> Told:
    return Told(strategy, size, dp, local, f"10.0.0.{master}", **more)


@pytest.mark.parametrize(
    ("free", "flags", "expected"),
    [
        pytest.param([8, 8], asked(STRICT, 2, 4), {"n1": 8}, id="strict: unset"),
        pytest.param([8, 8], asked(STRICT, 2, 4, 1), {"n1": 4, "n2": 4}, id="strict: one a node"),
        pytest.param([4, 2, 4], asked(STRICT, 3, 2, 2), {"n1": 4, "n3": 2}, id="strict: skips"),
        pytest.param([8, 8], asked(STRICT, 2, 4, 1, master=2), {"n2": 4, "n1": 4}, id="strict: from there"),
        pytest.param([8, 8, 8], asked(FILL, 4, 2, 1), {"n1": 2, "n2": 6}, id="fill: takes what is there"),
        pytest.param([2, 2, 2, 2], asked(SPAN, 2, 4), {f"n{i}": 2 for i in (1, 2, 3, 4)}, id="span"),
        pytest.param([2, 0, 2], asked(SPAN, 1, 4), {"n1": 2, "n3": 2}, id="span: an empty node"),
        pytest.param(
            [8, 8, 8], asked(STRICT, 2, 8, 1, allowed_addresses=("10.0.0.3",)), {"n1": 8, "n3": 8},
            id="the master is always allowed",
        ),
    ],
)  # fmt: skip
def test_vllm_takes_these_gpus(free, flags, expected):
    outcome = vllm_placement(nodes(*free), flags)
    assert isinstance(outcome, Placed), outcome
    assert outcome.gpus_by_node == expected


@pytest.mark.parametrize(
    ("free", "flags", "why"),
    [
        pytest.param(
            [8, 8], asked(STRICT, 2, 8), "room for 1 ranks on the master", id="strict: all on the master"
        ),
        pytest.param(
            [4, 2], asked(STRICT, 3, 2, 2), "room for 2 of 3", id="strict: the last node needs full room"
        ),
        pytest.param(
            [8, 8], asked(STRICT, 1, 8, master=9), "0 nodes have the master's address", id="no master"
        ),
        pytest.param([8, 8], asked(SPAN, 1, 8), "enough for a rank", id="span: fits on a node"),
        pytest.param([8, 4], asked(SPAN, 1, 12), "different numbers", id="span: unlike nodes"),
        pytest.param([8, 8], asked(SPAN, 1, 12), "no multiple", id="span: no multiple of a node"),
        pytest.param([8, 8], asked(SPAN, 2, 16), "room for 1 of 2", id="span: not enough nodes"),
        pytest.param([8, 8], asked(SPAN, 2, 16, 2), "set under span", id="span: a local size"),
        pytest.param([0, 8, 8], asked(SPAN, 1, 16), "no free GPU on the master", id="span: an empty master"),
        pytest.param([0], asked(STRICT, 1, 1), "no free GPU on the allowed nodes", id="nothing free"),
    ],
)
def test_vllm_refuses(free, flags, why):
    outcome = vllm_placement(nodes(*free), flags)
    assert isinstance(outcome, Refused)
    assert why in outcome.why


def test_vllm_waits_for_ever_for_a_cpu():
    assert isinstance(vllm_placement(nodes(8, cpus=1), asked(STRICT, 2, 4)), Stuck)


def test_a_node_in_the_middle_of_a_rank_needs_no_cpu():
    first, second = nodes(8)[0], Node("n2", "10.0.0.2", 8, 8, 8, 0)
    assert isinstance(vllm_placement([first, second], asked(SPAN, 1, 16)), Placed)


def test_fill_on_more_room_than_it_needs_depends_on_the_order():
    assert settled(permutations(nodes(8, 8, 4)), asked(FILL, 5, 2, 1)) is None


def test_fill_on_exactly_its_room_does_not():
    assert settled(permutations(nodes(8, 8, 4)), asked(FILL, 7, 2, 1)) is not None
