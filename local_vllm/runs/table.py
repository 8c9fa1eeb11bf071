"""The table that a run prints when all its servers answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from local_vllm.config.schema import LocalVLLMModelProxySettings, RunConfig, ServerConfig
from local_vllm.plan.placement import Placement

if TYPE_CHECKING:
    from local_vllm.engine.owned import OwnedEngine

HEADINGS = ("server", "implementation", "model", "topology", "nodes and GPUs", "URL")


def servers_table(config: RunConfig, engines: Sequence[OwnedEngine], url: str) -> Table:
    """One row for each server, and the gateway last."""
    table = Table(*HEADINGS)
    for column in table.columns:
        column.overflow = "fold"
    placements = {engine.spec.server: engine.spec.placement for engine in engines}
    for server in config.servers:
        placement = placements.get(server.name)
        topology, gpus = (topology_text(placement), gpus_text(placement)) if placement else ("", "")
        table.add_row(server.name, server.implementation, _model(server), topology, gpus, f"{url}/{server.name}/v1")
    table.add_row("(gateway)", "", "by the request's model", "", "", f"{url}/v1")
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


def _model(server: ServerConfig) -> str:
    if isinstance(server.settings, LocalVLLMModelProxySettings):
        return f"that of {server.settings.model_server.name}"
    return server.settings.model
