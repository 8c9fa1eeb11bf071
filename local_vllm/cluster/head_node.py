"""The head node of the cluster that this process has joined: Ray Serve's controller and ingress are there.

What is to be done there is left to the callers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from local_vllm.errors import ClusterError

T = TypeVar("T")

# Ray gives its head node, and no other, one of this.
HEAD_RESOURCE = "node:__internal_head__"
ANSWER_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class HeadNode:
    """`address` is the one that Ray knows it by; `is_here` when this process runs on it."""

    node_id: str
    address: str
    is_here: bool

    def run(self, work: Callable[..., T], *arguments: object) -> T:
        """What `work` returns on that node, or raises there: as Ray's user, who may be another than this process's.

        Raises:
            ClusterError: Ray did not get it done in time.
        """
        there = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        placed = ray.remote(work).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        try:
            return ray.get(placed.remote(*arguments), timeout=ANSWER_DEADLINE_S)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise ClusterError(f"Ray's head node {self.address} did not do its part: {error}") from error


def head_node() -> HeadNode:
    """The head of the cluster that this process is connected to."""
    context = ray.get_runtime_context()
    status = get_cluster_status(context.gcs_address)
    for node in (*status.active_nodes, *status.idle_nodes):
        if HEAD_RESOURCE in node.total_resources():
            return HeadNode(node.node_id, node.ip_address, node.node_id == context.get_node_id())
    raise ClusterError(f"the Ray cluster at {context.gcs_address} shows no head node")
