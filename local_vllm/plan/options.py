"""Every way to place one server on a stock of nodes so that vLLM does the same for each order of the nodes.

The rules are vLLM's own (see vllm_placement.py), turned round. A server may use exactly the nodes it needs.

strict  each node takes `data_parallel_size_local` ranks, the last what is left, and a node without room for
        all of them is skipped. So the ranks divide evenly over the nodes, or there are two: then the last is
        known.
fill    the master takes `data_parallel_size_local` ranks, each other node as many as it can. So the others
        fit to the last rank, or there is only one other.
span    every node gives every free GPU. So they have equally many, and together exactly enough.

Each rank takes one CPU on its first node. Which nodes those are is not known under span with several ranks:
there every node gives one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from local_vllm.plan.stock import Kind, Share, Stock, draws, pools, take
from local_vllm.plan.topology import PackStrategy, Topology


class Shape(NamedTuple):
    """What matters of a topology to the search."""

    world_size: int
    ranks: int
    strategy: PackStrategy
    local: int | None

    @property
    def gpus(self) -> int:
        return self.ranks * self.world_size


class Option(NamedTuple):
    """`local` is the data_parallel_size_local that makes it so.

    The master is a node of the first share, or with `any_master` whichever node one likes.
    """

    shares: tuple[Share, ...]
    local: int | None
    any_master: bool = False


def shape_of(topology: Topology) -> Shape:
    span = topology.strategy is PackStrategy.SPAN
    local = None if span else topology.data_parallel_size_local
    return Shape(topology.world_size, topology.data_parallel_size, topology.strategy, local)


def options(stock: Stock, shape: Shape) -> Iterator[Option | None]:
    """Ways to place a server, the best first: fewest nodes, opened nodes, tightest. None is a dead end."""
    for pool in pools(stock):
        match shape.strategy:
            case PackStrategy.STRICT:
                yield from _strict(pool, shape, even=None)
            case PackStrategy.FILL:
                yield from _fill(pool, shape)
            case PackStrategy.SPAN:
                yield from _span(pool, shape)


def strict_options(stock: Stock, shape: Shape, *, even: bool) -> Iterator[Option | None]:
    """Those under strict that need no more room than they take (even), or those that do."""
    for pool in pools(stock):
        yield from _strict(pool, shape, even=even)


def _strict(stock: Stock, shape: Shape, even: bool | None) -> Iterator[Option | None]:
    most = max((_room(kind, shape) for kind, _ in stock), default=0)
    for local in _locals(shape.ranks, shape.local, most):
        divides = shape.ranks % local == 0
        if even is None or even is divides:
            yield from (_even if divides else _uneven)(stock, shape, local)


@lru_cache(maxsize=4096)
def _locals(ranks: int, wish: int | None, most: int) -> tuple[int, ...]:
    """The ranks a node may take: on fewest nodes first, even ones before uneven, then the fullest first."""
    sizes = range(1, min(ranks, most) + 1) if wish is None else (wish,)
    fit = [size for size in sizes if size <= most and (ranks % size == 0 or 2 * size > ranks)]
    return tuple(sorted(fit, key=lambda size: (-(-ranks // size), ranks % size != 0, -size)))


def _room(kind: Kind, shape: Shape) -> int:
    """Ranks that a node of this kind has GPUs for."""
    return kind.gpus // shape.world_size


def _even(stock: Stock, shape: Shape, local: int) -> Iterator[Option]:
    fit = tuple(item for item in stock if _room(item[0], shape) >= local and item[0].cpus >= local)
    for drawn in draws(fit, shape.ranks // local):
        yield Option(
            tuple(_share(kind, count, local, shape) for kind, count in drawn), local, any_master=True
        )


def _uneven(stock: Stock, shape: Shape, local: int) -> Iterator[Option]:
    last = shape.ranks - local
    for first, others in _masters(stock, shape, local):
        for kind, _ in others:
            if _room(kind, shape) >= local and kind.cpus >= last:
                yield Option((first, _share(kind, 1, last, shape)), local)


def _masters(stock: Stock, shape: Shape, local: int) -> Iterator[tuple[Share, Stock]]:
    """One node for the first `local` ranks, and the stock without that node."""
    for kind, _ in stock:
        if _room(kind, shape) >= local and kind.cpus >= local:
            yield _share(kind, 1, local, shape), _without(stock, kind)


def _without(stock: Stock, kind: Kind) -> Stock:
    return take(stock, (Share(kind, 1, kind.gpus, kind.cpus),))


def _share(kind: Kind, nodes: int, ranks: int, shape: Shape) -> Share:
    return Share(kind, nodes, ranks * shape.world_size, ranks)


def _fill(stock: Stock, shape: Shape) -> Iterator[Option | None]:
    most = max((min(_room(kind, shape), kind.cpus) for kind, _ in stock), default=0)
    locals_ = range(min(shape.ranks, most), 0, -1) if shape.local is None else (shape.local,)
    if shape.ranks in locals_:
        yield from (Option((first,), shape.ranks) for first, _ in _masters(stock, shape, shape.ranks))
    for local in locals_:
        yield from _fill_two(stock, shape, local)
    if locals_:
        yield from _fill_many(stock, shape, min(locals_), max(locals_))


def _fill_two(stock: Stock, shape: Shape, local: int) -> Iterator[Option]:
    last = shape.ranks - local
    for first, others in _masters(stock, shape, local) if last else ():
        for kind, _ in others:
            if _room(kind, shape) >= last and kind.cpus >= last:
                yield Option((first, _share(kind, 1, last, shape)), local)


def _fill_many(stock: Stock, shape: Shape, fewest: int, most: int) -> Iterator[Option | None]:
    """Three nodes and more: the others are filled up, and the master takes what is left over."""
    full = [item for item in stock if 0 < _room(item[0], shape) <= item[0].cpus]
    full.sort(key=lambda item: -_room(item[0], shape))
    for nodes in range(2, sum(count for _, count in full) + 1):
        for drawn in _summing(tuple(full), nodes, shape.ranks - most, shape.ranks - fewest, shape):
            if drawn is None:
                yield None
                continue
            others = tuple(_share(kind, count, _room(kind, shape), shape) for kind, count in drawn)
            local = shape.ranks - sum(share.nodes * share.cpus for share in others)
            for first, _ in _masters(_less(stock, drawn), shape, local):
                yield Option((first, *others), local)


Draw = tuple[tuple[Kind, int], ...]


def _less(stock: Stock, drawn: Draw) -> Stock:
    return take(stock, [Share(kind, count, kind.gpus, kind.cpus) for kind, count in drawn])


def _summing(full: Stock, nodes: int, low: int, high: int, shape: Shape) -> Iterator[Draw | None]:
    """Draws of so many nodes with room for `low` to `high` ranks together; None is a dead end."""
    if nodes == 0 and low <= 0 <= high:
        yield ()
        return
    rooms = [_room(kind, shape) for kind, _ in full]
    if not nodes or not rooms or rooms[0] * nodes < low or rooms[-1] * nodes > high:
        yield None
        return
    (kind, count), rest = full[0], full[1:]
    for drawn in range(min(count, nodes), -1, -1):
        head = ((kind, drawn),) if drawn else ()
        for tail in _summing(rest, nodes - drawn, low - drawn * rooms[0], high - drawn * rooms[0], shape):
            yield None if tail is None else head + tail


def _span(stock: Stock, shape: Shape) -> Iterator[Option]:
    for gpus in sorted({kind.gpus for kind, _ in stock}, reverse=True):
        if gpus < shape.world_size and shape.world_size % gpus == 0:
            yield from _span_alike(stock, shape, gpus)


def _span_alike(stock: Stock, shape: Shape, gpus: int) -> Iterator[Option]:
    cpus = 1 if shape.ranks > 1 else 0
    alike = tuple(item for item in stock if item[0].gpus == gpus and item[0].cpus >= cpus)
    for first, _ in alike:
        if first.cpus >= 1:
            for drawn in draws(_without(alike, first), shape.gpus // gpus - 1):
                others = (Share(kind, count, gpus, cpus) for kind, count in drawn)
                yield Option((Share(first, 1, gpus, 1), *others), None, any_master=cpus == 1)
