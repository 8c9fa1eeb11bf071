"""The nearest known name to a misspelt one, for error messages. It knows no configuration itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The name in `known` most like `word`, whatever the case, dashes or underscores; None when none is."""
    folded: dict[str, str] = {}
    for name in known:
        folded.setdefault(_fold(name), name)
    matches = difflib.get_close_matches(_fold(word), folded, n=1, cutoff=cutoff)
    return folded[matches[0]] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: `; did you mean X?`, or the names there are, or nothing."""
    names = sorted(set(known))
    match = nearest(word, names)
    if match:
        return f"; did you mean `{match}`?"
    return f"; known here: {', '.join(names)}" if 0 < len(names) <= 8 else ""


def _fold(name: str) -> str:
    return name.casefold().replace("-", "_")
