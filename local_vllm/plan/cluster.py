"""Nodes of a cluster, and what is free on them.

A picture taken at one moment. Reading it from Ray, or from a cluster described by hand, is left to others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holding:
    """GPUs of a node that something else has; `holder` is a name for a person ("run 7f3a")."""

    holder: str
    gpus: int


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `address` is the one Ray knows it by. GPUs are whole: where 7.5 are free, it is 7."""

    node_id: str
    address: str
    gpus_total: int
    gpus_free: int
    cpus_total: float
    cpus_free: float
    accelerator: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    holdings: tuple[Holding, ...] = ()


@dataclass(frozen=True, slots=True)
class Cluster:
    """The living nodes, in any order: a plan does not depend on it."""

    nodes: tuple[Node, ...]

    @property
    def gpus_free(self) -> int:
        return sum(node.gpus_free for node in self.nodes)

    def by_address(self) -> tuple[Node, ...]:
        """The nodes as a person counts them: 10.0.0.9 stands before 10.0.0.10."""
        return tuple(sorted(self.nodes, key=_natural_key))


def _natural_key(node: Node) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", node.address)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], node.node_id
