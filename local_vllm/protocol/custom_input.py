"""The input of a custom tool, found in the JSON arguments that the model writes for it, piece by piece.
The model was shown a function of one string named `input` (see `tools.py`).
"""

from __future__ import annotations

import json
import re

import msgspec
from msgspec import Struct

_OPENING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
# Characters and whole escapes, up to the closing quote or to an escape that is unfinished or none.
_WHOLE_UNITS = re.compile(r'(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\["\\/bfnrt])*')
_UNFINISHED = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_HALF_A_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")


class _Arguments(Struct, gc=False):
    input: str


_decode_arguments = msgspec.json.Decoder(_Arguments).decode
_decode_string = json.JSONDecoder(strict=False).decode  # models write line breaks as they are


class CustomInput:
    """Takes arguments in pieces of any size. Arguments of another shape stay as the model wrote them."""

    def __init__(self) -> None:
        self._held = ""
        self._is_open = False  # inside of the string
        self._is_over = False

    def feed(self, piece: str) -> str:
        """What of the input is certain now."""
        if self._is_over:
            return ""
        self._held += piece
        if not self._is_open and not self._begins():
            return ""
        return self._certain()

    def rest(self) -> str:
        """What was held back, when nothing follows."""
        if self._is_open or self._is_over:
            return ""
        try:
            return _decode_arguments(self._held.encode("utf-8", "surrogatepass")).input
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return self._held

    def _begins(self) -> bool:
        opening = _OPENING.match(self._held)
        if opening is not None:
            self._held = self._held[opening.end() :]
            self._is_open = True
        return self._is_open

    def _certain(self) -> str:
        pieces: list[str] = []
        while True:
            units = _WHOLE_UNITS.match(self._held)
            end = units.end() if units else 0
            pieces.append(self._held[:end])
            self._held = self._held[end:]
            if not self._held.startswith("\\") or _UNFINISHED.match(self._held):
                break
            pieces.append("\\\\")  # an escape that is none: the model meant the backslash
            self._held = self._held[1:]
        return _unescaped(self._hold_back("".join(pieces)))

    def _hold_back(self, text: str) -> str:
        if self._held.startswith('"'):
            self._is_open, self._is_over = False, True
        elif half := _HALF_A_PAIR.search(text):
            self._held = half[0] + self._held
            return text[: half.start()]
        return text


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    unescaped: str = _decode_string(f'"{text}"')
    return unescaped.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
