"""The table that a run prints when all its servers answer."""

from __future__ import annotations

from rich.table import Table

from local_vllm.plan.placement import Placement
from local_vllm.runs.record import RunRecord

HEADINGS = ("server", "implementation", "model or servers used", "topology", "nodes and GPUs", "URL")


def servers_table(run: RunRecord) -> Table:
    """One row for each server, and the gateway last."""
    table = Table(*HEADINGS)
    for column in table.columns:
        column.overflow = "fold"
    for server in run.servers:
        placement = server.placement
        topology, gpus = (topology_text(placement), gpus_text(placement)) if placement else ("", "")
        answers = server.model or ", ".join(server.uses)
        table.add_row(server.name, server.implementation, answers, topology, gpus, server.url)
    table.add_row("(gateway)", "", "by the request's model", "", "", f"{run.url}/v1")
    return table


def topology_text(placement: Placement) -> str:
    """DP, TP, PP and the strategy, as in `DP=2 TP=4 PP=1 strict`."""
    topology = placement.topology
    sizes = (topology.data_parallel_size, topology.tensor_parallel_size, topology.pipeline_parallel_size)
    named = " ".join(f"{name}={size}" for name, size in zip(("DP", "TP", "PP"), sizes, strict=True))
    return f"{named} {topology.strategy}"


def gpus_text(placement: Placement) -> str:
    """GPUs on each node, as in `10.0.0.7: 8, 10.0.0.8: 8`."""
    by_address: dict[str, int] = {}
    for rank in placement.ranks:
        for slot in rank.slots:
            by_address[slot.address] = by_address.get(slot.address, 0) + slot.gpus
    return ", ".join(f"{address}: {gpus}" for address, gpus in by_address.items())
