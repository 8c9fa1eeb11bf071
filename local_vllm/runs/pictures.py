"""The cluster that a dry run plans on: described by hand, a live one, or what a run would start here."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from local_vllm.cluster import machine
from local_vllm.cluster.machine import EngineKind
from local_vllm.config.described import DescribedNodes, each_node
from local_vllm.config.schema import RunConfig
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.runs.clusters import connected, logical_cpus, logical_gpus
from local_vllm.runs.preflight import check_cluster

RAY_ADDRESS = "<address of Ray>"
THIS_MACHINE = "this-machine"


@dataclass(frozen=True, slots=True)
class Picture:
    """A cluster to plan on.

    Attributes:
        title: what it is, for a person.
        kind: the vLLM that engines on it run.
        ray_address: where they find Ray, or a word for it.
        url: where Ray Serve listens.
        is_local: it is this machine and nothing else.
    """

    cluster: Cluster
    title: str
    kind: EngineKind
    ray_address: str
    url: str
    is_local: bool = False


def described(config: RunConfig, groups: Sequence[DescribedNodes]) -> Picture:
    """Nodes that need not exist: `vllm serve` as on GPUs, and CPUs enough where none are given."""
    cluster = described_cluster(groups)
    title = f"a cluster described by hand: {nodes_text(cluster.nodes)}"
    return Picture(cluster, title, "gpu", RAY_ADDRESS, serve_url(config))


def described_cluster(groups: Sequence[DescribedNodes]) -> Cluster:
    return Cluster(tuple(_node(address, group) for address, group in each_node(groups)))


def _node(address: str, group: DescribedNodes) -> Node:
    # A rank takes one CPU and at least one GPU, so that many are enough.
    cpus = float(max(group.gpus, 1)) if group.cpus is None else group.cpus
    return Node(
        node_id=address,
        address=address,
        gpus_total=group.gpus,
        gpus_free=group.gpus if group.gpus_free is None else group.gpus_free,
        cpus_total=cpus,
        cpus_free=cpus if group.cpus_free is None else group.cpus_free,
        accelerator=group.accelerator,
        labels=tuple(sorted(group.labels.items())),
    )


def live(config: RunConfig, address: str) -> Picture:
    """A running Ray cluster as it is now: joined, read, left. Raises ClusterError where there is none."""
    check_cluster(address)
    return asyncio.run(_read(config, address))


async def _read(config: RunConfig, address: str) -> Picture:
    async with connected(address):
        import ray

        from local_vllm.cluster.nodes import read_cluster
        from local_vllm.runs.registry import published_runs
        from local_vllm.runs.tenancy import with_holdings

        runs = published_runs()
        cluster = with_holdings(read_cluster(), runs)
        title = f"the Ray cluster at {address}, as it is now: {nodes_text(cluster.nodes)}"
        url = next((run.serve_url for run in runs if run.serve_url), serve_url(config))
        kind = machine.engine_kind() or "gpu"
        return Picture(cluster, title, kind, ray.get_runtime_context().gcs_address, url)


def this_machine(config: RunConfig) -> Picture:
    """The private cluster that a run would start here."""
    pretended = logical_gpus(config)
    gpus, cpus = _visible_gpus() if pretended is None else pretended, float(logical_cpus(config))
    node = Node(THIS_MACHINE, THIS_MACHINE, gpus, gpus, cpus, cpus)
    what = f": {_count(gpus, 'GPU')}"
    if pretended is not None:
        what = f", which has no GPU: Ray is told of {_count(gpus, 'logical one')}"
    kind = machine.engine_kind() or ("gpu" if pretended is None else "cpu")
    title = f"this machine{what}"
    return Picture(Cluster((node,)), title, kind, RAY_ADDRESS, serve_url(config), is_local=True)


def _visible_gpus() -> int:
    """Those that Ray would count here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return machine.gpu_count()
    return min(machine.gpu_count(), sum(bool(part.strip()) for part in visible.split(",")))


def nodes_text(nodes: Iterable[Node]) -> str:
    """As in `1 node without GPUs, 4 nodes x 8 GPUs, 30 of 32 GPUs free`."""
    nodes = tuple(nodes)
    sizes = Counter(node.gpus_total for node in nodes)
    parts = [
        f"{_count(count, 'node')} {'x ' + _count(gpus, 'GPU') if gpus else 'without GPUs'}"
        for gpus, count in sorted(sizes.items())
    ]
    total, free = sum(node.gpus_total for node in nodes), sum(node.gpus_free for node in nodes)
    return ", ".join([*parts, *([f"{free} of {total} GPUs free"] if free < total else [])])


def _count(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def serve_url(config: RunConfig) -> str:
    """Where a Ray Serve that this run starts listens."""
    return f"http://{machine.reachable_host(config.settings.http_host)}:{config.settings.http_port}"
