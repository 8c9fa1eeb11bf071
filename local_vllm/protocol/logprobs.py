"""Which tokens a piece of text was made of, so that their log probabilities can go with it. An engine lists
every token that it generated, those of reasoning, of calls and of tags too.
"""

from __future__ import annotations

from collections import deque

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType


class _NamedToken(Struct, gc=False):
    token: str


class _Listed(Struct, gc=False):
    content: Raw | UnsetType = UNSET


class _Choice(Struct, gc=False):
    logprobs: _Listed | None = None


class _Answer(Struct, gc=False):
    choices: list[_Choice] = []


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_entries = msgspec.json.Decoder(list[Raw]).decode
_decode_names = msgspec.json.Decoder(list[_NamedToken]).decode


class _Token(Struct, gc=False):
    """A token's place in the text of all tokens, and the entry in which the engine lists it."""

    start: int
    end: int
    entry: Raw


class TokenTexts:
    """The tokens that no text has taken yet, in order."""

    def __init__(self) -> None:
        self._waiting: deque[_Token] = deque()
        self._text = ""  # what follows the last text that was taken
        self._begins_at = 0

    def add(self, listed: Raw) -> None:
        """`listed` is a JSON array of chat's log probabilities: `[{"token": ..., "logprob": ...}, ...]`."""
        start = self._begins_at + len(self._text)
        names = [named.token for named in _decode_names(listed)]
        for name, entry in zip(names, _decode_entries(listed), strict=True):
            self._waiting.append(_Token(start, start + len(name), Raw(bytes(entry))))
            start += len(name)
        self._text += "".join(names)

    def take(self, text: str) -> list[Raw]:
        """The entries of the tokens that `text` was made of; all that wait, if their texts do not show it."""
        found = self._text.find(text)
        if found < 0:
            found, text = 0, self._text
        start = self._begins_at + found
        self._begins_at = start + len(text)
        self._text = self._text[found + len(text) :]
        passed = self._pop_before(self._begins_at)
        return [token.entry for token in passed if token.end > start or token.start >= start]

    def _pop_before(self, end: int) -> list[_Token]:
        popped = []
        while self._waiting and self._waiting[0].start < end:
            popped.append(self._waiting.popleft())
        return popped


def texts_of_whole(answer: bytes) -> TokenTexts:
    """The tokens of a whole answer; none when the engine listed none."""
    texts = TokenTexts()
    listed = _decode_answer(answer).choices[0].logprobs
    if listed is not None and listed.content is not UNSET and bytes(listed.content) != b"null":
        texts.add(listed.content)
    return texts
