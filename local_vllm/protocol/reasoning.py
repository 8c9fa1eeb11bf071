"""The only place that knows `<think>` and the tags of other models: splits a model's text, in pieces as it comes, into
reasoning and answer. An engine with a reasoning parser has done this already and gives its reasoning in a field of
its own.
"""

from __future__ import annotations

# opening tag, closing tag
Tags = tuple[str, str]
THINK: Tags = ("<think>", "</think>")

# (is it reasoning, the text)
Segment = tuple[bool, str]


def opens_in_reasoning(text: str, *, tags: Tags = THINK, unclosed: bool = False) -> bool:
    """Whether a whole answer starts inside a block whose opening tag the chat template wrote: it closes a
    block that it did not open. `unclosed` says what a text without any tag is.
    """
    opening, closing = text.find(tags[0]), text.find(tags[1])
    if closing < 0:
        return unclosed and opening < 0
    return not 0 <= opening < closing


def ends_in_opening(prompt: str, tags: Tags = THINK) -> bool:
    """Whether what follows a prompt is inside a block."""
    return prompt.rstrip().endswith(tags[0])


class ThinkSplitter:
    """Splits text that comes in pieces of any size; a tag may be cut anywhere."""

    def __init__(self, *, inside: bool = False, tags: Tags = THINK) -> None:
        self.inside = inside
        self._tags = tags
        self._held = ""  # an unfinished tag

    def begin_after(self, prompt: str) -> None:
        """Take from the prompt, as the chat template made it, whether the answer starts inside a block."""
        self.inside = ends_in_opening(prompt, self._tags)

    def feed(self, piece: str) -> list[Segment]:
        """The segments that are certain now. A block that is closed twice, or opened twice, keeps the tag as
        text.
        """
        if not self._held and self._tags[self.inside][0] not in piece:
            return [(self.inside, piece)]
        text, self._held = self._held + piece, ""
        segments: list[Segment] = []
        while True:
            before, tag, text = text.partition(self._tags[self.inside])
            if not tag:
                segments.append((self.inside, self._hold_back(before)))
                return segments
            segments.append((self.inside, before))
            self.inside = not self.inside

    def rest(self) -> list[Segment]:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        return [(self.inside, held)] if held else []

    def _hold_back(self, text: str) -> str:
        """Keeps the longest ending that may be the beginning of the tag."""
        tag = self._tags[self.inside]
        for length in range(min(len(tag) - 1, len(text)), 0, -1):
            if text.endswith(tag[:length]):
                self._held = text[-length:]
                return text[:-length]
        return text
