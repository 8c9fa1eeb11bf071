"""The command lines that a dry run prints, read back as a shell would read them."""

from __future__ import annotations

import shlex


def shown_engines(text: str) -> list[tuple[dict[str, str], list[str]]]:
    """Variables and words of each engine, in the order of the text."""
    paragraphs = [part for part in text.split("\n\n") if part.startswith("RAY_ADDRESS=")]
    return [_engine(shlex.split(part.replace("\\\n", ""))) for part in paragraphs]


def _engine(words: list[str]) -> tuple[dict[str, str], list[str]]:
    program = next(index for index, word in enumerate(words) if "=" not in word)
    return dict(word.split("=", 1) for word in words[:program]), words[program:]
