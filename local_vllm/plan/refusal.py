"""Why servers do not fit, in one sentence with the numbers, and the nearest thing that would fit.

Every suggestion has been planned, together with the other servers, before it is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from local_vllm.errors import PlacementError
from local_vllm.plan.cluster import Node
from local_vllm.plan.topology import PackStrategy, Topology

LeftAfter = Callable[[Sequence[Topology]], "Sequence[Node] | None"]
_SUGGESTIONS = 3


def check_each(nodes: Sequence[Node], topologies: Sequence[Topology]) -> None:
    """Raises PlacementError for a span that needs no span: vLLM refuses it as well."""
    for topology in topologies:
        if needless_span(nodes, topology):
            roomiest = max(nodes, key=lambda node: node.gpus_free)
            raise PlacementError(
                f"{topology.server}: {topology.rank_text} needs {topology.world_size} GPUs, and "
                f"{roomiest.gpus_free} are free on one node, {roomiest.address}; span is for ranks that are "
                "larger than a node, so set VLLM_RAY_DP_PACK_STRATEGY to strict"
            )


def needless_span(nodes: Sequence[Node], topology: Topology) -> bool:
    most = max((node.gpus_free for node in nodes), default=0)
    return topology.strategy is PackStrategy.SPAN and topology.world_size <= most


def reason(
    nodes: Sequence[Node], topologies: Sequence[Topology], left_after: LeftAfter, notes: Sequence[str]
) -> str:
    """One sentence, that ends with the notes.

    `left_after` plans the servers it is given, and returns the nodes with what is left, or None.
    """
    culprit, before = _culprit(topologies, left_after)
    left = left_after(before)
    parts = [f"{culprit.server}: {shortage(left if left is not None else nodes, culprit)}"]
    if before:
        parts.append(
            f"the rest is taken by {_listed(before)}" if left is not None else f"beside {_listed(before)}"
        )
    parts += [
        _held(nodes),
        _fitting(nodes, topologies, (culprit, *before[:_SUGGESTIONS]), left_after),
        *notes,
    ]
    return "; ".join(part for part in parts if part)


def _culprit(topologies: Sequence[Topology], left_after: LeftAfter) -> tuple[Topology, tuple[Topology, ...]]:
    """The first server, the largest first, that does not fit beside those before it, and these.

    Alone when it does not even fit by itself.
    """
    ordered = sorted(topologies, key=lambda topology: (-topology.world_size, -topology.gpus))
    for topology in dict.fromkeys(replace(topology, server="") for topology in ordered):
        if left_after((topology,)) is None:
            return next(other for other in ordered if replace(other, server="") == topology), ()
    fit, tight = 1, len(ordered)
    while tight - fit > 1:
        middle = (fit + tight) // 2
        fit, tight = (middle, tight) if left_after(ordered[:middle]) is not None else (fit, middle)
    return ordered[tight - 1], tuple(ordered[: tight - 1])


def shortage(nodes: Sequence[Node], topology: Topology) -> str:
    """What one server lacks on these nodes."""
    if topology.strategy is PackStrategy.SPAN:
        return _span_shortage(nodes, topology)
    size, ranks, strategy = topology.world_size, topology.data_parallel_size, topology.strategy
    roomiest = _roomiest(nodes)
    if roomiest is None or roomiest.gpus_free < size:
        found = (
            f"the largest free block is {roomiest.gpus_free}, on {roomiest.address}"
            if roomiest
            else "no GPU is free"
        )
        return f"{topology.rank_text} needs {_gpus(size)} on one node under {strategy}; {found}"
    rooms = [(node, node.gpus_free // size) for node in nodes if node.gpus_free >= size]
    free = sum(room for _, room in rooms)
    asked = f"DP {ranks} of {topology.rank_text} needs {_blocks(ranks)} of {_gpus(size)}"
    if free < ranks:
        return f"{asked} under {strategy}; {free} {_are(free)} free, {_most_of(rooms)}"
    with_cpu = sum(min(room, int(node.cpus_free)) for node, room in rooms)
    if with_cpu < ranks:
        found = f"{_blocks(free)} {_are(free)} free, {with_cpu} of them with a CPU"
        return f"{asked} with a CPU beside each; {found}"
    return f"{asked}, {_pattern(topology)}; free are {_most_of(rooms)}"


def _pattern(topology: Topology) -> str:
    local, strategy = topology.data_parallel_size_local, topology.strategy
    if strategy is PackStrategy.FILL:
        return f"and fill takes {local or 'some'} on the first node and every one on the others"
    return f"{local if local else 'equally many'} on each node under strict"


def _span_shortage(nodes: Sequence[Node], topology: Topology) -> str:
    free = Counter(node.gpus_free for node in nodes if node.gpus_free)
    total = sum(gpus * count for gpus, count in free.items())
    asked = f"{topology.rank_text} needs {_gpus(topology.world_size)}"
    if topology.data_parallel_size > 1:
        asked = f"DP {topology.data_parallel_size} of {topology.rank_text} needs {_gpus(topology.gpus)}"
    if total < topology.gpus:
        return f"{asked} under span; {total} {_are(total)} free in the whole cluster"
    found = ", ".join(f"{gpus} on {_nodes(free[gpus])}" for gpus in sorted(free, reverse=True)[:4])
    return (
        f"{asked} under span, on nodes with equally many free GPUs that divide {topology.world_size}, and "
        f"a free CPU for each rank; free are {found}"
    )


def _held(nodes: Sequence[Node]) -> str:
    """Who has the GPUs that are not free."""
    holders: Counter[str] = Counter()
    for node in nodes:
        for holding in node.holdings:
            holders[holding.holder] += holding.gpus
    unknown = sum(node.gpus_total - node.gpus_free for node in nodes) - holders.total()
    if unknown > 0:
        holders["others"] += unknown
    held = " and ".join(f"{gpus} by {holder}" for holder, gpus in holders.most_common(3))
    return f"GPUs in use: {held}" if held else ""


def _fitting(
    nodes: Sequence[Node],
    topologies: Sequence[Topology],
    concerned: Sequence[Topology],
    left_after: LeftAfter,
) -> str:
    """Changes of the server that does not fit, or else of one that it has to share with."""
    for topology in concerned:
        others = list(topologies)
        others.remove(topology)

        def fits(change: Topology, others: Sequence[Topology] = others) -> bool:
            return not needless_span(nodes, change) and left_after([*others, change]) is not None

        found = [words for attempt in _attempts(topology) if (words := _first_that_fits(attempt, fits))]
        if found:
            whose = "" if topology is concerned[0] else f" for {topology.server}"
            return f"what would fit: {', or '.join(found[:_SUGGESTIONS])}{whose}"
    return "nothing near it would fit"


Attempt = tuple[str, Sequence[Topology]]


def _attempts(topology: Topology) -> Iterator[Attempt]:
    """Changes to try, the nearest first; of each kind the first that fits is told."""
    if topology.data_parallel_size_local is not None and topology.strategy is not PackStrategy.SPAN:
        yield "no data_parallel_size_local", [replace(topology, data_parallel_size_local=None)]
    free = replace(topology, data_parallel_size_local=None)
    for strategy in PackStrategy:
        if strategy is not topology.strategy:
            yield f"strategy {strategy}", [replace(free, strategy=strategy)]
    for field in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = getattr(topology, field)
        parts = [part for part in range(size // 2, 0, -1) if size % part == 0]
        yield f"{field} {{0.{field}}}", _smaller(free, field, parts)
    ranks = topology.data_parallel_size
    fewer = sorted(
        {*range(ranks - 1, 0, -1)[:8], *(ranks >> shift for shift in range(1, ranks.bit_length()))}
    )[::-1]
    yield "data_parallel_size {0.data_parallel_size}", _smaller(free, "data_parallel_size", fewer)


def _smaller(topology: Topology, field: str, sizes: Sequence[int]) -> list[Topology]:
    """Smaller sizes; a rank that shrinks to a node's size is packed strictly."""
    return [
        replace(topology, **{field: size}, strategy=strategy)
        for size in sizes
        for strategy in dict.fromkeys((topology.strategy, PackStrategy.STRICT))
    ]


def _first_that_fits(attempt: Attempt, fits: Callable[[Topology], bool]) -> str | None:
    words, changes = attempt
    first = next((change for change in changes if fits(change)), None)
    if first is None:
        return None
    strategy = "" if len(changes) == 1 or first.strategy is changes[0].strategy else f" with {first.strategy}"
    return words.format(first) + strategy


def _roomiest(nodes: Sequence[Node]) -> Node | None:
    return max((node for node in nodes if node.gpus_free), key=lambda node: node.gpus_free, default=None)


def _most_of(rooms: Sequence[tuple[Node, int]]) -> str:
    shown = sorted(rooms, key=lambda item: -item[1])
    text = ", ".join(f"{room} on {node.address}" for node, room in shown[:4])
    return text + (f" and more on {_nodes(len(shown) - 4)}" if len(shown) > 4 else "")


def _listed(topologies: Sequence[Topology]) -> str:
    text = ", ".join(f"{topology.server} ({_gpus(topology.gpus)})" for topology in topologies[:4])
    return text + (f" and {len(topologies) - 4} more" if len(topologies) > 4 else "")


def _blocks(count: int) -> str:
    return f"{count} block" if count == 1 else f"{count} blocks"


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
