"""A command line and its environment as a person copies them into a shell: one variable, one flag a line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence


def shell_text(environment: Mapping[str, str], words: Sequence[str]) -> str:
    """Lines that end in a backslash, all but the last; quoted where a shell would read something else."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    first, *flags = _by_flag(words)
    return " \\\n".join([*variables, first, *(f"  {flag}" for flag in flags)])


def _by_flag(words: Sequence[str]) -> Iterator[str]:
    """The program with what it is given, then each flag with its values."""
    line: list[str] = []
    for word in words:
        if word.startswith("--") and line:
            yield shlex.join(line)
            line = []
        line.append(word)
    yield shlex.join(line)
