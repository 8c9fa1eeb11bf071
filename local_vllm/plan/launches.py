"""Which engines of a plan may be launched side by side, and which only when others have their GPUs. Pure.

vLLM takes its GPUs of what is free when it looks, so a launch beside another may find more free than was planned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from local_vllm.plan.placement import Placement
from local_vllm.plan.topology import PackStrategy


def launched_after(placements: Sequence[Placement]) -> tuple[frozenset[int], ...]:
    """For each placement of a plan, the indexes of those that must have their GPUs before it is launched.

    All of them are earlier in the plan's own order.
    """
    return tuple(
        frozenset(
            index
            for index, earlier in enumerate(placements)
            if earlier.launch_order < placement.launch_order and not _side_by_side(earlier, placement)
        )
        for placement in placements
    )


def _side_by_side(one: Placement, other: Placement) -> bool:
    apart = one.gpus_by_node.keys().isdisjoint(other.gpus_by_node)
    return apart or (takes_the_same(one) and takes_the_same(other))


def takes_the_same(placement: Placement) -> bool:
    """Whether vLLM takes the planned GPUs of each node however many more are free there.

    It may use no other nodes than these. Of the master's it takes as many ranks as it is told, under strict as many of
    each further node too; under fill it takes those as full as it goes, up to what is left of its ranks.
    """
    ranks = Counter(rank.slots[0].node_id for rank in placement.ranks)
    match placement.topology.strategy:
        case PackStrategy.SPAN:
            return False
        case PackStrategy.FILL:
            return len(ranks) <= 2
        case PackStrategy.STRICT:
            return len(ranks) == 1 or set(ranks.values()) == {placement.data_parallel_size_local}
