"""Finds room for all servers of a run together: which is launched when, and on what kinds of nodes.

Two passes. The first takes the largest first and is nearly always right at once. The second is complete: it
goes through every way in an order of launches that loses nothing (below), up to a number of tries.

The order matters, because vLLM looks at what is free at that moment. strict never minds launching early, and
an uneven one needs room that it does not take, so those go first. fill takes whatever is there, so it goes
when the stricts have left exactly its part. span takes nodes as they are, and leaves nothing: it goes last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from local_vllm.plan.options import Option, Shape, options, strict_options
from local_vllm.plan.stock import Stock, take
from local_vllm.plan.topology import PackStrategy


class Step(NamedTuple):
    shape: Shape
    option: Option


@dataclass(frozen=True, slots=True)
class Found:
    """Steps in launch order."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class NoRoom:
    """No plan exists; or, when not `complete`, none was found in `tries` tries."""

    complete: bool
    tries: int


class _Position(NamedTuple):
    stage: int
    remaining: tuple[tuple[Shape, int], ...]
    stock: Stock


_Move = tuple[Step | None, _Position]
_UNEVEN, _STRICT, _FILL, _SPAN = range(4)
_LARGEST_FIRST_TRIES = 1_000


def search(stock: Stock, shapes: Iterable[Shape], tries: int) -> Found | NoRoom:
    """Room for every shape, or the word that there is none."""
    remaining = tuple(sorted(Counter(shapes).items(), key=_largest_first))
    start = _Position(_UNEVEN, remaining, stock)
    if not remaining:
        return Found(())
    if _hopeless(start):
        return NoRoom(complete=True, tries=0)
    outcome = _walk(start, _largest_first_moves, min(tries, _LARGEST_FIRST_TRIES))
    if isinstance(outcome, Found):
        return outcome
    if tries <= _LARGEST_FIRST_TRIES:
        return NoRoom(complete=False, tries=tries)
    return _walk(start, _complete_moves, tries)


def _largest_first(item: tuple[Shape, int]) -> tuple[int, ...]:
    shape, _ = item
    early = (PackStrategy.SPAN, PackStrategy.STRICT, PackStrategy.FILL).index(shape.strategy)
    return early, -shape.world_size, -shape.ranks, shape.local or 0


def _walk(
    start: _Position, moves: Callable[[_Position], Iterator[_Move | None]], tries: int
) -> Found | NoRoom:
    """Depth first, never twice over the same ground."""
    path: list[Step | None] = []
    stack, seen, tried = [moves(start)], {_ground(start)}, 0
    while stack:
        for move in stack[-1]:
            tried += 1
            if tried > tries:
                return NoRoom(complete=False, tries=tries)
            if move is None or (ground := _ground(move[1])) in seen:
                continue
            seen.add(ground)
            if _hopeless(move[1]):
                continue
            path.append(move[0])
            if not move[1].remaining:
                return Found(tuple(step for step in path if step))
            stack.append(moves(move[1]))
            break
        else:
            stack.pop()
            if path:
                path.pop()
    return NoRoom(complete=True, tries=tried)


def _ground(position: _Position) -> tuple[object, ...]:
    """A position without what only guides the order of tries."""
    counts: Counter[tuple[int, int]] = Counter()
    for kind, count in position.stock:
        counts[kind.gpus, kind.cpus] += count
    return position.stage, position.remaining, tuple(sorted(counts.items()))


def _hopeless(position: _Position) -> bool:
    """Whether simple sums say that the rest cannot fit: GPUs, CPUs, and blocks of each size."""
    stock, remaining = position.stock, position.remaining
    if sum(kind.cpus * count for kind, count in stock) < sum(
        shape.ranks * count for shape, count in remaining
    ):
        return True
    packed = [(shape, count) for shape, count in remaining if shape.strategy is not PackStrategy.SPAN]
    for size in {shape.world_size for shape, _ in packed}:
        needed = sum(shape.ranks * (shape.world_size // size) * count for shape, count in packed)
        if sum(kind.gpus // size * count for kind, count in stock) < needed:
            return True
    return sum(kind.gpus * count for kind, count in stock) < sum(shape.gpus * n for shape, n in remaining)


def _largest_first_moves(position: _Position) -> Iterator[_Move | None]:
    if position.remaining:
        shape = position.remaining[0][0]
        yield from _moves(position, shape, options(position.stock, shape), 0)


def _complete_moves(position: _Position) -> Iterator[_Move | None]:
    stage, remaining, stock = position
    here = [shape for shape, _ in remaining if _stage_of(shape) == max(stage, _STRICT)]
    if stage == _UNEVEN:
        yield None, _Position(_STRICT, remaining, stock)
        for shape in here:
            yield from _moves(position, shape, strict_options(stock, shape, even=False), stage)
    elif not here and stage < _SPAN:
        yield None, _Position(stage + 1, remaining, stock)
    elif stage == _STRICT:
        yield from _moves(position, here[0], strict_options(stock, here[0], even=True), stage)
    else:
        for shape in here if stage == _FILL else here[:1]:
            yield from _moves(position, shape, options(stock, shape), stage)


def _stage_of(shape: Shape) -> int:
    return {PackStrategy.STRICT: _STRICT, PackStrategy.FILL: _FILL, PackStrategy.SPAN: _SPAN}[shape.strategy]


def _moves(
    position: _Position, shape: Shape, ways: Iterator[Option | None], stage: int
) -> Iterator[_Move | None]:
    remaining = tuple(
        (other, n - (other == shape)) for other, n in position.remaining if n > (other == shape)
    )
    for option in ways:
        if option is None:
            yield None
        else:
            yield Step(shape, option), _Position(stage, remaining, take(position.stock, option.shares))
