"""The lines of the table, and the table as text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PROBLEM_CHARACTERS = 90
HEADINGS = ("what", "mark", "measured", "", "in figures")


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is measured. `mark` is the most that `measured` may be; both are in `unit`.

    Attributes:
        measured: None if there is nothing to compare with.
        problem: why it could not be measured, or what was wrong with an answer: then `measured` counts for nothing.
        figures: what `measured` comes from, by name, the unit at the name's end.
    """

    what: str
    unit: str = "x"
    measured: float | None = None
    mark: float | None = None
    problem: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if self.problem:
            return f"FAILED: {textwrap.shorten(self.problem, PROBLEM_CHARACTERS)}"
        if self.measured is None or self.mark is None:
            return ""
        return "met" if self.measured <= self.mark else "missed"

    def as_json(self) -> dict[str, Any]:
        told = {"what": self.what, "unit": self.unit, "measured": rounded(self.measured), "mark": self.mark}
        told |= {"problem": self.problem, **{name: rounded(value) for name, value in self.figures.items()}}
        return {name: value for name, value in told.items() if value is not None}


def rounded(value: float | None) -> float | None:
    """Four digits that count; None for what is no number."""
    return None if value is None or math.isnan(value) else float(f"{value:.4g}")


def table(rows: Iterable[Row]) -> str:
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    return "\n".join(_line(line, widths) for line in cells)


def _cells(row: Row) -> tuple[str, ...]:
    figures = ", ".join(f"{_named(name)} {value:.4g}" for name, value in row.figures.items())
    return (row.what, _value(row.mark, row.unit), _value(row.measured, row.unit), row.verdict, figures)


def _named(name: str) -> str:
    return name.replace("_", " ")


def _value(value: float | None, unit: str) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3g} {unit}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    text, *numbers, verdict, figures = cells
    padded = [text.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:3], strict=True))]
    return "  ".join([*padded, verdict.ljust(widths[3]), figures]).rstrip()
