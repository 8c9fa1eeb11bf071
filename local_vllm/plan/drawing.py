"""A plan as text: nodes as rows, GPUs as cells, a letter for each server and a number for each of its ranks.

Which of a node's GPUs a rank gets is Ray's choice: cells show how many, not which.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import Placement

Paint = Callable[[str, int], str]
FREE, IN_USE = ".", "#"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SHOWN_ALIKE = 3
_HOLDERS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class _Cell:
    """One GPU: what stands for it, and the index of the server that has it, if one of ours has."""

    text: str
    server: int | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    node: Node
    cells: tuple[_Cell, ...]

    @property
    def looks(self) -> tuple[tuple[_Cell, ...], str | None]:
        return self.cells, self.node.accelerator


def draw_placements(
    cluster: Cluster,
    placements: Sequence[Placement],
    *,
    launched: bool = False,
    width: int | None = None,
    paint: Paint = lambda text, server: text,
) -> str:
    """The drawing and its legend, without a newline at the end.

    `launched` says that the cluster was read after the launch: its free GPUs are those beside the plan's.
    Where rows of single cells are wider than `width` columns, they are counted: `A0 x8`.
    `paint` may wrap a text of the server with that index in a colour.
    """
    taken = _cells(placements)
    rows = [_row(node, taken.get(node.node_id, []), launched) for node in cluster.by_address()]
    legend = [_legend(index, placement, paint) for index, placement in enumerate(placements)]
    return "\n".join([*_lines(rows, width, paint), "", *legend, *_rest(rows)])


def letter(index: int) -> str:
    """A, B, ... Z, AA, AB, ... for the servers in their order."""
    head, tail = divmod(index, len(_LETTERS))
    return (letter(head - 1) if head else "") + _LETTERS[tail]


def _cells(placements: Sequence[Placement]) -> dict[str, list[_Cell]]:
    cells: dict[str, list[_Cell]] = defaultdict(list)
    for index, placement in enumerate(placements):
        for rank in placement.ranks:
            for slot in rank.slots:
                cells[slot.node_id] += [_Cell(f"{letter(index)}{rank.rank}", index)] * slot.gpus
    return cells


def _row(node: Node, ours: Sequence[_Cell], launched: bool) -> _Row:
    free = node.gpus_free - (0 if launched else len(ours))
    others = node.gpus_total - len(ours) - free
    return _Row(node, (*ours, *[_Cell(FREE)] * free, *[_Cell(IN_USE)] * others))


def _lines(rows: Sequence[_Row], width: int | None, paint: Paint) -> Iterator[str]:
    """One line a node; of nodes in a row that look alike, a few and a count."""
    margin = max((len(row.node.address) for row in rows), default=0)
    column = max((len(cell.text) for row in rows for cell in row.cells), default=1)
    widest = max((_width(row, margin, column) for row in rows), default=0)
    draw = _counted if width is not None and widest > width else _one_by_one
    for _, run in groupby(rows, key=lambda row: row.looks):
        alike = list(run)
        shown = alike if len(alike) <= _SHOWN_ALIKE + 1 else alike[:_SHOWN_ALIKE]
        for row in shown:
            cells = draw(row.cells, column, paint) or "no GPUs"
            yield f"{row.node.address:<{margin}}  {cells}  {row.node.accelerator or ''}".rstrip()
        if len(shown) < len(alike):
            more, last = len(alike) - len(shown), alike[-1].node.address
            yield f"{'...':<{margin}}  and {more} more like it, to {last}"


def _width(row: _Row, margin: int, column: int) -> int:
    accelerator = f"  {row.node.accelerator}" if row.node.accelerator else ""
    return margin + 1 + len(row.cells) * (column + 1) + len(accelerator)


def _one_by_one(cells: Sequence[_Cell], column: int, paint: Paint) -> str:
    return " ".join(_painted(cell, f"{cell.text:<{column}}", paint) for cell in cells)


def _counted(cells: Sequence[_Cell], column: int, paint: Paint) -> str:
    counts = [(cell, len(list(run))) for cell, run in groupby(cells)]
    return "  ".join(_painted(cell, f"{cell.text} x{count}", paint) for cell, count in counts)


def _painted(cell: _Cell, text: str, paint: Paint) -> str:
    return text if cell.server is None else paint(text, cell.server)


def _legend(index: int, placement: Placement, paint: Paint) -> str:
    topology = placement.topology
    gpus, nodes = topology.gpus, len(placement.allowed_addresses)
    return (
        f"{paint(f'{letter(index):<3}', index)} {topology.server}: DP {topology.data_parallel_size} x "
        f"{topology.rank_text}, {topology.strategy}, {gpus} GPU{'s' * (gpus > 1)} on "
        f"{nodes} node{'s' * (nodes > 1)}, rank 0 on {placement.master_address}"
    )


def _rest(rows: Sequence[_Row]) -> Iterator[str]:
    """How many GPUs are free, and who has those that are neither free nor ours."""
    counts = Counter(cell.text for row in rows for cell in row.cells if cell.server is None)
    if counts[FREE]:
        yield f"{FREE:<3} free: {counts[FREE]}"
    if counts[IN_USE]:
        yield f"{IN_USE:<3} in use by others: {counts[IN_USE]}{_holders(rows)}"


def _holders(rows: Sequence[_Row]) -> str:
    held: Counter[str] = Counter()
    for row in rows:
        for holding in row.node.holdings:
            held[holding.holder] += holding.gpus
    listed = [f"{gpus} by {holder}" for holder, gpus in held.most_common(_HOLDERS_SHOWN)]
    return f" ({', '.join(listed)}{', ...' if len(held) > _HOLDERS_SHOWN else ''})" if listed else ""
