"""A plan as text: nodes as rows, GPUs as cells, a letter for each server and a number for each of its ranks.

Which of a node's GPUs a rank gets is Ray's choice: cells show how many, not which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import Placement

Paint = Callable[[str, int], str]
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SHOWN_ALIKE = 3


def draw_placements(
    cluster: Cluster,
    placements: Sequence[Placement],
    *,
    launched: bool = False,
    paint: Paint = lambda text, server: text,
) -> str:
    """The drawing and its legend, without a newline at the end.

    `launched` says that the cluster was read after the launch: its free GPUs are those beside the plan's.
    `paint` may wrap a text of the server with that index in a colour.
    """
    cells = _cells(placements)
    width = max((len(cell) for row in cells.values() for cell, _ in row), default=1)
    rows = [(node, _row(node, cells.get(node.node_id, []), launched)) for node in cluster.by_address()]
    margin = max((len(node.address) for node, _ in rows), default=0)
    lines = [*_lines(rows, width, margin, paint), ""]
    lines += [_legend(index, placement, paint) for index, placement in enumerate(placements)]
    return "\n".join([*lines, f"{'.':<3} free   {'#':<3} in use by others"])


_Cell = tuple[str, int | None]


def letter(index: int) -> str:
    """A, B, ... Z, AA, AB, ... for the servers in their order."""
    head, tail = divmod(index, len(_LETTERS))
    return (letter(head - 1) if head else "") + _LETTERS[tail]


def _cells(placements: Sequence[Placement]) -> dict[str, list[_Cell]]:
    cells: dict[str, list[_Cell]] = defaultdict(list)
    for index, placement in enumerate(placements):
        for rank in placement.ranks:
            for slot in rank.slots:
                cells[slot.node_id] += [(f"{letter(index)}{rank.rank}", index)] * slot.gpus
    return cells


def _row(node: Node, ours: list[_Cell], launched: bool) -> list[_Cell]:
    free = node.gpus_free - (0 if launched else len(ours))
    others = node.gpus_total - len(ours) - free
    return [*ours, *[(".", None)] * free, *[("#", None)] * others]


def _lines(rows: Sequence[tuple[Node, list[_Cell]]], width: int, margin: int, paint: Paint) -> Iterator[str]:
    """One line a node; of nodes in a row that look alike and hold nothing of ours, a few and a count."""
    for (_, accelerator, _), run in groupby(rows, key=_looks):
        nodes = list(run)
        shown = nodes if _ours(nodes[0][1]) or len(nodes) <= _SHOWN_ALIKE + 1 else nodes[:_SHOWN_ALIKE]
        for node, row in shown:
            drawn = " ".join(_paint(cell, width, paint) for cell in row)
            yield f"{node.address:<{margin}}  {drawn}  {accelerator}".rstrip()
        if len(shown) < len(nodes):
            yield f"{'...':<{margin}}  and {len(nodes) - len(shown)} more like it, to {nodes[-1][0].address}"


def _looks(item: tuple[Node, list[_Cell]]) -> tuple[tuple[_Cell, ...], str, str]:
    node, row = item
    return tuple(row), node.accelerator or "", node.address if _ours(row) else ""


def _ours(row: Sequence[_Cell]) -> bool:
    return any(server is not None for _, server in row)


def _paint(cell: _Cell, width: int, paint: Paint) -> str:
    text, server = f"{cell[0]:<{width}}", cell[1]
    return text if server is None else paint(text, server)


def _legend(index: int, placement: Placement, paint: Paint) -> str:
    topology = placement.topology
    nodes = len(placement.allowed_addresses)
    return (
        f"{paint(f'{letter(index):<3}', index)} {topology.server}: DP {topology.data_parallel_size} x "
        f"{topology.rank_text}, {topology.strategy}, {topology.gpus} GPU{'s' * (topology.gpus > 1)} on "
        f"{nodes} node{'s' * (nodes > 1)}, rank 0 on {placement.master_address}"
    )
