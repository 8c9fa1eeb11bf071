"""What a tool's docstring says: what the tool does, and what each argument is (Google's `Args:` section)."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field

_SECTION = re.compile(r"(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*")
_ARGUMENTS = ("Args", "Arguments", "Parameters")
_ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)")


@dataclass(frozen=True, slots=True)
class Described:
    """`text` is one paragraph or several; the descriptions of arguments are one line each."""

    text: str = ""
    arguments: dict[str, str] = field(default_factory=dict)


def described(docstring: str | None) -> Described:
    """Reads a docstring; sections other than the arguments' are for programmers, and left out."""
    sections = _sections(inspect.cleandoc(docstring or "").splitlines())
    arguments = next((lines for name, lines in sections.items() if name in _ARGUMENTS), [])
    return Described("\n".join(sections[""]).strip(), _arguments(arguments))


def _sections(lines: list[str]) -> dict[str, list[str]]:
    """The lines by the section that they are in; those before the first are in ''."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in lines:
        if heading := _SECTION.fullmatch(line):
            current = heading[1]
            sections[current] = []
        else:
            sections[current].append(line)
    return sections


def _arguments(lines: list[str]) -> dict[str, str]:
    """An argument's description goes on in the lines that are indented deeper than its name."""
    text = inspect.cleandoc("\n" + "\n".join(lines)).splitlines()
    found: dict[str, str] = {}
    name = None
    for line in text:
        if not line.startswith(" ") and (begun := _ARGUMENT.fullmatch(line)):
            name = begun[1]
            found[name] = begun[2].strip()
        elif name is not None and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found
