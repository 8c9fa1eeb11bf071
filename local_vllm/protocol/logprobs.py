"""Which tokens a piece of text was made of, so that their log probabilities can go with it. An engine lists
every token that it generated, those of reasoning, of calls and of tags too.
"""

from __future__ import annotations

import re
from collections import deque
from functools import lru_cache

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from local_vllm.protocol.reasoning import THINK, Tags


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
    """The tokens that no text has taken yet, in order. `tags` are among them, and in no text."""

    def __init__(self, tags: Tags = THINK) -> None:
        self._tags = tags
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
        found = self._place_of(text)
        if found < 0:
            found, text = 0, self._text
        start = self._begins_at + found
        self._begins_at = start + len(text)
        self._text = self._text[found + len(text) :]
        passed = self._pop_before(self._begins_at)
        return [token.entry for token in passed if token.end > start or token.start >= start]

    def _place_of(self, text: str) -> int:
        """Where `text` stands: right here nearly always; else behind tags, whose own characters are not it."""
        if self._text.startswith(text):
            return 0
        untagged = _tags_in(self._tags).sub(lambda tag: "\0" * len(tag[0]), self._text)
        first = found = untagged.find(text)
        starts = {token.start - self._begins_at for token in self._waiting}
        while found >= 0 and found not in starts:
            found = untagged.find(text, found + 1)
        if found >= 0:
            return found
        if self._text.endswith(text):
            return len(self._text) - len(text)
        return first if first >= 0 else self._text.find(text)

    def _pop_before(self, end: int) -> list[_Token]:
        popped = []
        while self._waiting and self._waiting[0].start < end:
            popped.append(self._waiting.popleft())
        return popped


@lru_cache(maxsize=64)
def _tags_in(tags: Tags) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tags)))


def texts_of_whole(answer: bytes, tags: Tags = THINK) -> TokenTexts:
    """The tokens of a whole answer; none when the engine listed none."""
    texts = TokenTexts(tags)
    listed = _decode_answer(answer).choices[0].logprobs
    if listed is not None and listed.content is not UNSET and bytes(listed.content) != b"null":
        texts.add(listed.content)
    return texts
