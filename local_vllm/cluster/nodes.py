"""The nodes of a live Ray cluster as the planner wants them: what each has and what is free on it now."""

from __future__ import annotations

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from local_vllm.plan.cluster import Cluster, Node


def read_cluster() -> Cluster:
    """The living nodes with total and free GPUs and CPUs. Needs a connected driver; no dashboard."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes = [_node(node) for node in (*status.active_nodes, *status.idle_nodes)]
    return Cluster(nodes=tuple(sorted(nodes, key=lambda node: (node.address, node.node_id))))


def _node(info) -> Node:
    total, free = info.total_resources(), info.available_resources()
    return Node(
        node_id=info.node_id,
        address=info.ip_address,
        gpus_total=int(total.get("GPU", 0)),
        gpus_free=int(free.get("GPU", 0)),
        cpus_total=total.get("CPU", 0.0),
        cpus_free=free.get("CPU", 0.0),
        accelerator=next((name[17:] for name in total if name.startswith("accelerator_type:")), None),
        labels=tuple(sorted((info.labels or {}).items())),
    )
