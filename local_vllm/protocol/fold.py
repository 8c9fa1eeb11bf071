"""Chat deltas -> output items. A stream adds many deltas; a whole answer is a stream of one.
Says of every delta which items it opened, grew and closed, so that events can be made of it.
"""

from __future__ import annotations

from msgspec import Struct

from local_vllm.protocol.chat import Delta, ToolCallDelta
from local_vllm.protocol.items import (
    Growing,
    GrowingCustomToolCall,
    GrowingFunctionCall,
    GrowingMessage,
    GrowingReasoning,
    GrowingRefusal,
    OutputItem,
    Status,
)
from local_vllm.protocol.reasoning import Segment, ThinkSplitter

_PREFIXES: dict[type[Growing], str] = {
    GrowingMessage: "msg",
    GrowingRefusal: "msg",
    GrowingReasoning: "rs",
    GrowingFunctionCall: "fc",
    GrowingCustomToolCall: "ctc",
}


class Opened(Struct, gc=False):
    """The item at `index` of the output began."""

    index: int
    growing: Growing


class Grew(Struct, gc=False):
    """The open item at `index` got more text (or arguments)."""

    index: int
    growing: Growing
    text: str


class Closed(Struct, gc=False):
    """The item at `index` is whole."""

    index: int
    item: OutputItem


Step = Opened | Grew | Closed


class Fold:
    """Builds the items of one response. `key` makes their ids unique; `splitter` finds reasoning inside the
    text.

    One item is open at a time. White space alone makes no item of its own: it waits for the text that
    follows, and stands only when nothing else was said.
    """

    def __init__(
        self, key: str, *, splitter: ThinkSplitter | None = None, custom_names: frozenset[str] = frozenset()
    ) -> None:
        self.items: list[OutputItem] = []
        self._key = key
        self._splitter = splitter
        self._custom_names = custom_names
        self._open: Growing | None = None
        self._open_call = -1  # chat's index of the call that is open
        self._calls = 0
        self._blank: tuple[type[Growing], str] = (GrowingMessage, "")

    def add(self, delta: Delta) -> list[Step]:
        """Take in one delta: its reasoning, then its text, then its calls."""
        steps: list[Step] = []
        if reasoning := delta.reasoning or delta.reasoning_content:
            self._stop_splitting(steps)  # the engine's parser does it
            self._say(GrowingReasoning, reasoning, steps)
        if delta.content:
            self._speak(delta.content, steps)
        if delta.refusal:
            self._say(GrowingRefusal, delta.refusal, steps)
        for position, call in enumerate(delta.tool_calls or ()):
            self._call(call, position if call.index is None else call.index, steps)
        return steps

    def finish(self, *, cut_off: bool) -> list[Step]:
        """End the answer. The last item of an answer that was `cut_off` is incomplete."""
        steps: list[Step] = []
        self._stop_splitting(steps)
        if self._open is None and not self.items:
            self._begin(GrowingMessage, "", steps)
        self._close(steps, "incomplete" if cut_off else "completed")
        return steps

    def _speak(self, text: str, steps: list[Step]) -> None:
        if self._splitter is None:
            self._say(GrowingMessage, text, steps)
        else:
            self._say_segments(self._splitter.feed(text), steps)

    def _stop_splitting(self, steps: list[Step]) -> None:
        splitter, self._splitter = self._splitter, None
        if splitter is not None:
            self._say_segments(splitter.rest(), steps)

    def _say_segments(self, segments: list[Segment], steps: list[Step]) -> None:
        for is_reasoning, text in segments:
            if not is_reasoning and type(self._open) is GrowingReasoning:
                self._close(steps)  # another block is another item
            self._say(GrowingReasoning if is_reasoning else GrowingMessage, text, steps)

    def _say(self, kind: type[Growing], text: str, steps: list[Step]) -> None:
        if not text:
            return
        if type(self._open) is kind:
            self._grow(text, steps)
        elif text.isspace():
            self._blank = (kind, self._blank_of(kind) + text)
        else:
            self._begin(kind, text, steps)

    def _begin(self, kind: type[Growing], text: str, steps: list[Step]) -> None:
        self._close(steps)
        self._opened(kind(self._new_id(kind)), steps)
        self._grow(self._blank_of(kind) + text, steps)
        self._blank = (kind, "")

    def _blank_of(self, kind: type[Growing]) -> str:
        return self._blank[1] if self._blank[0] is kind else ""

    def _call(self, call: ToolCallDelta, index: int, steps: list[Step]) -> None:
        if index != self._open_call or not isinstance(self._open, GrowingFunctionCall):
            self._close(steps)
            self._open_call = index
            self._opened(self._new_call(call), steps)
        if call.function.arguments:
            self._grow(call.function.arguments, steps)

    def _new_call(self, call: ToolCallDelta) -> GrowingFunctionCall:
        name = call.function.name or ""
        kind = GrowingCustomToolCall if name in self._custom_names else GrowingFunctionCall
        self._calls += 1
        return kind(self._new_id(kind), call.id or f"call_{self._key}{len(self.items)}", name)

    def _new_id(self, kind: type[Growing]) -> str:
        return f"{_PREFIXES[kind]}_{self._key}{len(self.items)}"

    def _opened(self, growing: Growing, steps: list[Step]) -> None:
        self._open = growing
        steps.append(Opened(len(self.items), growing))

    def _grow(self, text: str, steps: list[Step]) -> None:
        if self._open is not None:
            self._open.pieces.append(text)
            steps.append(Grew(len(self.items), self._open, text))

    def _close(self, steps: list[Step], status: Status = "completed") -> None:
        if self._open is not None:
            item = self._open.item(status)
            steps.append(Closed(len(self.items), item))
            self.items.append(item)
            self._open = None
