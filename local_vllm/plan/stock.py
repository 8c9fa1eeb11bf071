"""What is free, counted: nodes that are alike stand in one line, so that a thousand of them are few.

Pure numbers: which node it is in the end is decided in placement.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from local_vllm.plan.cluster import Node


class Kind(NamedTuple):
    """Nodes that are alike. Kinds sort by how gladly they are used: opened ones first, then the tightest.

    `cpus` is never above `gpus`: a rank takes one CPU and at least one GPU of its first node.
    """

    whole: bool
    gpus: int
    cpus: int
    accelerator: int

    def after(self, gpus: int, cpus: int) -> Kind:
        left = self.gpus - gpus
        return Kind(False, left, min(self.cpus - cpus, left), self.accelerator)


class Share(NamedTuple):
    """Take `gpus` and `cpus` from each of `nodes` nodes of one kind."""

    kind: Kind
    nodes: int
    gpus: int
    cpus: int


Stock = tuple[tuple[Kind, int], ...]
"""Kinds with a free GPU and how many nodes there are of each, sorted."""


def stock_of(nodes: Sequence[Node]) -> tuple[Stock, list[Kind]]:
    """The stock, and the kind of each node in the order given."""
    names = sorted({node.accelerator or "" for node in nodes})
    kinds = [_kind(node, names.index(node.accelerator or "")) for node in nodes]
    return tuple(sorted(Counter(kind for kind in kinds if kind.gpus).items())), kinds


def _kind(node: Node, accelerator: int) -> Kind:
    gpus = max(0, int(node.gpus_free))
    whole = gpus == node.gpus_total
    return Kind(whole, gpus, min(gpus, max(0, int(node.cpus_free))), accelerator)


def take(stock: Stock, shares: Sequence[Share]) -> Stock:
    """What is left of a stock."""
    counts = dict(stock)
    for share in shares:
        counts[share.kind] -= share.nodes
    for share in shares:
        rest = share.kind.after(share.gpus, share.cpus)
        if rest.gpus:
            counts[rest] = counts.get(rest, 0) + share.nodes
    return tuple(sorted(item for item in counts.items() if item[1]))


def pools(stock: Stock) -> Iterator[Stock]:
    """The nodes of each accelerator by themselves, then all: an engine mixes them only when it must."""
    accelerators = sorted({kind.accelerator for kind, _ in stock})
    if len(accelerators) > 1:
        for accelerator in accelerators:
            yield tuple(item for item in stock if item[0].accelerator == accelerator)
    yield stock


def draws(stock: Stock, nodes: int) -> Iterator[tuple[tuple[Kind, int], ...]]:
    """Every way to draw so many nodes, those that take most from the first kinds first."""
    if nodes == 0:
        yield ()
        return
    if sum(count for _, count in stock) < nodes:
        return
    (kind, count), rest = stock[0], stock[1:]
    for drawn in range(min(count, nodes), -1, -1):
        head = ((kind, drawn),) if drawn else ()
        for tail in draws(rest, nodes - drawn):
            yield head + tail
