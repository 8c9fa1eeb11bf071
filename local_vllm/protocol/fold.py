"""Chat deltas -> output items. A stream adds many deltas; a whole answer is a stream of one.
Says of every delta which items it opened, grew and closed, so that events can be made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from msgspec import Raw, Struct

from local_vllm.protocol.chat import Delta, ToolCallDelta
from local_vllm.protocol.chat_tools import Callee
from local_vllm.protocol.items import (
    Growing,
    GrowingCall,
    GrowingCustomToolCall,
    GrowingFunctionCall,
    GrowingMessage,
    GrowingReasoning,
    GrowingRefusal,
    OutputItem,
    Status,
)
from local_vllm.protocol.logprobs import TokenTexts
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
    """The open item at `index` got more text (or arguments), made of tokens with these `logprobs`."""

    index: int
    growing: Growing
    text: str
    logprobs: list[Raw] | tuple[()] = ()


class Closed(Struct, gc=False):
    """The item at `index` is whole."""

    index: int
    item: OutputItem


Step = Opened | Grew | Closed


class Fold:
    """Builds the items of one response. `key` makes their ids unique; `splitter` finds reasoning inside the
    text; `tokens` are given when the text's log probabilities are wanted.

    One text is open at a time, and any number of calls: pieces of calls may alternate. White space alone
    makes no item of its own: it waits for the text that follows, and stands only when nothing else was said.
    The last item closes when the answer is finished, and not before.
    """

    def __init__(
        self,
        key: str,
        *,
        splitter: ThinkSplitter | None = None,
        callees: Mapping[str, Callee] = MappingProxyType({}),
        tokens: TokenTexts | None = None,
        on_reasoning: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_reasoning` is called when reasoning comes in a field of its own where it might have been in the text."""
        self._key = key
        self._on_reasoning = on_reasoning
        self._splitter = splitter
        self._callees = callees
        self._tokens = tokens
        self._begun: list[Growing] = []
        self._done: dict[int, OutputItem] = {}
        self._open: Growing | None = None  # the text that is open
        self._is_sealed = False  # whether it takes no more
        self._calls: dict[int, GrowingCall] = {}  # chat's index -> the call that has it
        self._blank: tuple[type[Growing], str] = (GrowingMessage, "")

    @property
    def items(self) -> list[OutputItem]:
        """All items; one that is still open as it stands, incomplete."""
        return [self._done.get(growing.index) or growing.item("incomplete") for growing in self._begun]

    def add(self, delta: Delta) -> list[Step]:
        """Take in one delta: its reasoning, then its text, then its calls."""
        steps: list[Step] = []
        if reasoning := delta.reasoning or delta.reasoning_content:
            if self._splitter is not None:  # the engine's parser does it
                self._on_reasoning()
                self._stop_splitting(steps)
            self._say(GrowingReasoning, reasoning, steps)
        if delta.content:
            self._speak(delta.content, steps)
        if delta.refusal:
            self._say(GrowingRefusal, delta.refusal, steps)
        if delta.tool_calls:
            for position, call in enumerate(delta.tool_calls):
                self._call(call, position if call.index is None else call.index, steps)
        return steps

    def finish(self, *, cut_off: bool) -> list[Step]:
        """End the answer. The last item of an answer that was `cut_off` is incomplete."""
        steps: list[Step] = []
        self._stop_splitting(steps)
        if not self._begun:
            self._begin(GrowingMessage, "", steps)
        for growing in self._begun:
            is_cut = cut_off and growing is self._begun[-1] and not self._is_sealed
            self._close(growing, steps, "incomplete" if is_cut else "completed")
        return steps

    # ---- text

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
            if is_reasoning:
                self._say(GrowingReasoning, text, steps)
            else:
                if type(self._open) is GrowingReasoning:
                    self._is_sealed = True  # another block is another item
                self._say(GrowingMessage, text, steps)

    def _say(self, kind: type[Growing], text: str, steps: list[Step]) -> None:
        if not text:
            return
        if type(self._open) is kind and not self._is_sealed:
            self._grow(self._open, text, steps)
        elif text.isspace():
            self._blank = (kind, self._blank_of(kind) + text)
        else:
            self._begin(kind, text, steps)

    def _begin(self, kind: type[Growing], text: str, steps: list[Step]) -> None:
        self._close_what_is_whole(steps)
        growing = kind(self._new_id(kind), len(self._begun))
        self._open = growing
        self._opened(growing, steps)
        self._grow(growing, self._blank_of(kind) + text, steps)
        self._blank = (kind, "")

    def _blank_of(self, kind: type[Growing]) -> str:
        return self._blank[1] if self._blank[0] is kind else ""

    # ---- calls

    def _call(self, call: ToolCallDelta, index: int, steps: list[Step]) -> None:
        growing = self._calls.get(index)
        if growing is None or _is_another(call, growing):
            growing = self._begin_call(call, index, steps)
        if call.function is not None and call.function.arguments and not growing.is_closed:
            self._grow(growing, call.function.arguments, steps)

    def _begin_call(self, call: ToolCallDelta, index: int, steps: list[Step]) -> GrowingCall:
        self._close_what_is_whole(steps)
        growing = self._calls[index] = self._new_call(call)
        self._opened(growing, steps)
        return growing

    def _new_call(self, call: ToolCallDelta) -> GrowingCall:
        name = (call.function.name if call.function else None) or ""
        callee = self._callees.get(name) or Callee(name)
        kind = GrowingCustomToolCall if callee.is_custom else GrowingFunctionCall
        index = len(self._begun)
        return kind(self._new_id(kind), index, call.id or f"call_{self._key}{index}", callee)

    # ---- items

    def _new_id(self, kind: type[Growing]) -> str:
        return f"{_PREFIXES[kind]}_{self._key}{len(self._begun)}"

    def _opened(self, growing: Growing, steps: list[Step]) -> None:
        self._is_sealed = False
        self._begun.append(growing)
        steps.append(Opened(growing.index, growing))

    def _grow(self, growing: Growing, piece: str, steps: list[Step]) -> None:
        text = growing.seen(piece)
        if not text:
            return
        growing.pieces.append(text)
        if self._tokens is None:
            steps.append(Grew(growing.index, growing, text))
        else:
            self._grow_with_tokens(self._tokens, growing, text, steps)

    def _grow_with_tokens(
        self, tokens: TokenTexts, growing: Growing, text: str, steps: list[Step]
    ) -> None:
        logprobs = [] if isinstance(growing, GrowingCall) else tokens.take(text)
        growing.logprobs += logprobs
        steps.append(Grew(growing.index, growing, text, logprobs))

    def _close_what_is_whole(self, steps: list[Step]) -> None:
        """What is done when another item begins: the text that was open, and calls with all their JSON."""
        if self._open is not None:
            self._close(self._open, steps)
            self._open = None
        for growing in self._calls.values():
            if not growing.is_closed and growing.is_whole:
                self._close(growing, steps)

    def _close(self, growing: Growing, steps: list[Step], status: Status = "completed") -> None:
        if growing.is_closed:
            return
        growing.is_closed = True
        if rest := growing.rest():
            growing.pieces.append(rest)
            steps.append(Grew(growing.index, growing, rest))
        item = self._done[growing.index] = growing.item(status)
        steps.append(Closed(growing.index, item))


def _is_another(call: ToolCallDelta, growing: GrowingCall) -> bool:
    """Whether an engine that numbers badly has begun another call with the same number."""
    is_named = call.function is not None and bool(call.function.name)
    return is_named and call.id is not None and call.id != growing.call_id
