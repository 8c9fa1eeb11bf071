"""Why servers do not fit, in one sentence with the numbers, and what would fit instead."""

from __future__ import annotations

from collections.abc import Sequence

from local_vllm.errors import PlacementError
from local_vllm.plan.cluster import Node
from local_vllm.plan.search import NoRoom
from local_vllm.plan.topology import PackStrategy, Topology


def check_each(nodes: Sequence[Node], topologies: Sequence[Topology]) -> None:
    """Raises PlacementError for a span that needs no span: vLLM refuses it as well."""
    roomiest = max(nodes, key=lambda node: node.gpus_free, default=None)
    for topology in topologies:
        span = topology.strategy is PackStrategy.SPAN
        if span and roomiest is not None and topology.world_size <= roomiest.gpus_free:
            raise PlacementError(
                f"{topology.server}: {topology.rank_text} needs {topology.world_size} GPUs, and "
                f"{roomiest.gpus_free} are free on one node ({roomiest.address}); span is for a rank that is larger "
                "than a node, so set VLLM_RAY_DP_PACK_STRATEGY to strict"
            )


def reason(nodes: Sequence[Node], topologies: Sequence[Topology], outcome: NoRoom) -> str:
    return "does not fit"
