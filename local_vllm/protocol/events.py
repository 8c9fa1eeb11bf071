"""Chat deltas -> the events of the Responses API, as ready bytes. Which items a delta opens, grows and closes
is left to `fold.py`, how an event is written to `event_bytes.py`, reading the engine's stream to the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from local_vllm.errors import LocalVLLMError, UpstreamError
from local_vllm.protocol.calls import Asked, Doubt
from local_vllm.protocol.chat import ChatChunk, ChatChunkWithTokens, Usage
from local_vllm.protocol.doubts import doubts_of, token_doubt
from local_vllm.protocol.errors import read_engine_error
from local_vllm.protocol.event_bytes import EventWriter, ItemWriter
from local_vllm.protocol.fold import Fold, Grew, Opened, Step
from local_vllm.protocol.logprobs import TokenTexts
from local_vllm.protocol.reasoning import Tags
from local_vllm.protocol.response import Ending, ResponseObject, ending, response_object, usage_of
from local_vllm.protocol.tokens import NoTokens, StreamedTokens, Tokens

_DONE = b"[DONE]"
_IN_PROGRESS = Ending("in_progress")

_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_chunk = msgspec.json.Decoder(ChatChunk).decode
_decode_chunk_with_tokens = msgspec.json.Decoder(ChatChunkWithTokens).decode


class ResponseEvents:
    """The events of one response, made from the engine's stream as it comes.

    `add` what the engine sends until it `is_over`, then `finish`; or `fail` when it breaks off. In the end
    `response` is the response as its last event has it, and `doubts` are worth a warning.
    """

    def __init__(
        self,
        asked: Asked,
        model: str,
        fold: Fold,
        *,
        clock: Callable[[], float],
        begins_after: Callable[[str], None] | None = None,
        texts: TokenTexts | None = None,
        tokens: StreamedTokens | None = None,
        unparsed: Tags | None = None,
    ) -> None:
        """`begins_after` is told the prompt, if the engine tells it. `texts` are those that `fold` takes the
        log probabilities of its text from; `tokens` collects what the last item is to carry. `unparsed` are the
        tags of reasoning that stay in the text.
        """
        self.is_over = False
        self.has_failed = False
        self.response: bytes | None = None
        self.doubts: tuple[Doubt, ...] = ()
        self._unparsed = unparsed
        self._asked = asked
        self._model = model
        self._fold = fold
        self._clock = clock
        self._begins_after = begins_after
        self._texts = texts
        self._tokens = tokens
        self._decode: Callable[[bytes], Any] = (
            _decode_chunk if texts is None and tokens is None else _decode_chunk_with_tokens
        )
        self._write = EventWriter()
        self._items: list[ItemWriter] = []
        self._has_begun = False
        self._finish_reason: str | None = None
        self._usage: Usage | None = None

    # ---- while the engine talks

    def add(self, payload: bytes) -> bytes:
        """The events that one event of the engine makes; maybe none. Raises UpstreamError for one that cannot
        be read, and for an error of the engine.
        """
        if payload == _DONE:
            self.is_over = True
            return b""
        try:
            chunk = self._decode(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
            message = f"The engine's stream holds what is no chat completion: {problem}"
            raise UpstreamError(message, code="bad_gateway") from problem
        if chunk.error is not UNSET:
            raise UpstreamError(read_engine_error(payload).message)
        events = b"" if self._has_begun else self._begin(chunk)
        if chunk.usage is not None:
            self._usage = chunk.usage
        if self._decode is _decode_chunk_with_tokens:
            self._collect(chunk)
        if not chunk.choices:
            return events
        choice = chunk.choices[0]
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason
        steps = self._fold.add(choice.delta)
        return events + self._written(steps) if steps else events

    def _begin(self, chunk: ChatChunk) -> bytes:
        self._has_begun = True
        self._model = chunk.model or self._model
        if self._begins_after is not None and chunk.prompt_text is not None:
            self._begins_after(chunk.prompt_text)
        return self._write.beginning(_encode(self._response([], _IN_PROGRESS)))

    def _collect(self, chunk: ChatChunkWithTokens) -> None:
        if self._tokens is not None:
            self._tokens.add(chunk)
        if self._texts is not None:
            for choice in chunk.choices[:1]:
                if choice.logprobs is not None and choice.logprobs.content is not UNSET:
                    self._texts.add(choice.logprobs.content)

    def _written(self, steps: list[Step]) -> bytes:
        if len(steps) == 1 and type(step := steps[0]) is Grew:  # what nearly all deltas are
            return self._items[step.index].grew(step)
        return b"".join([self._write_step(step) for step in steps])

    def _write_step(self, step: Step) -> bytes:
        if type(step) is Grew:
            return self._items[step.index].grew(step)
        if type(step) is Opened:
            item = ItemWriter(self._write, step.growing)
            self._items.append(item)
            return item.opened(step.growing)
        return self._items[step.index].closed(step.item)

    # ---- when it has ended

    @property
    def has_said_all(self) -> bool:
        """Whether the answer is whole, although the engine may not have said goodbye."""
        return self._finish_reason is not None or (self.is_over and not self.has_failed)

    @property
    def needs_tokenize(self) -> bool:
        """Whether only the engine's /tokenize can tell the prompt's token ids, when its stream has ended."""
        found = self._tokens.read() if self._tokens is not None else None
        return isinstance(found, NoTokens) and found.prompt_only

    def finish(self, tokenized: bytes | None = None) -> bytes:
        """The last events of an answer. `tokenized` is what the engine's /tokenize said of the prompt."""
        end = ending(self._finish_reason)
        if end.error is not None:
            return self._end(end)
        events = b"" if self._has_begun else self._begin(ChatChunk())
        cut_off = end.status != "completed"
        steps = self._fold.finish(cut_off=cut_off)
        self.doubts = tuple(doubts_of(self._asked, self._fold.items, whole=not cut_off, unparsed=self._unparsed))
        if self._tokens is not None:
            self._carry(self._tokens.read(tokenized))
        return events + self._written(steps) + self._end(end)

    def _carry(self, found: Tokens | NoTokens) -> None:
        """Give the last item the tokens of its turn, if they are there."""
        if isinstance(found, Tokens):
            self._fold.items[-1].carry(found)
        if doubt := token_doubt(found, self._usage):
            self.doubts += (doubt,)

    def fail(self, error: Exception) -> bytes:
        """The last event of an answer that broke off. What was said stays in the response."""
        said = str(error) if isinstance(error, LocalVLLMError) else "Internal error; the server's log has it."
        begun = b"" if self._has_begun else self._begin(ChatChunk())
        return begun + self._end(Ending("failed", error={"code": "server_error", "message": said}))

    def _end(self, end: Ending) -> bytes:
        self.is_over = True
        self.has_failed = end.error is not None
        self.response = _encode(self._response(self._fold.items, end))
        return self._write.of_response(end.status.encode(), self.response)

    def _response(self, output: list[Any], end: Ending) -> ResponseObject:
        return response_object(
            self._asked,
            model=self._model,
            output=output,
            end=end,
            usage=usage_of(self._usage),
            completed_at=int(self._clock()),
        )


def events_of_whole(response: bytes) -> bytes:
    """The stream of a response that was over before anything was said."""
    fields = _decode_fields(response)
    status: str = msgspec.json.decode(fields["status"])
    unknown_yet = dict.fromkeys(("error", "incomplete_details", "completed_at", "usage"))
    write = EventWriter()
    begun = write.beginning(_encode(fields | unknown_yet | {"status": "in_progress", "output": []}))
    return begun + write.of_response(status.encode(), response)


# ---- an engine that fails before its first token


class _EngineError(Struct, gc=False):
    code: int | str | None = None


class _FailedChunk(Struct, gc=False):
    error: _EngineError


_decode_failure = msgspec.json.Decoder(_FailedChunk).decode


def error_status(payload: bytes) -> int | None:
    """The HTTP status of an error that stands in a stream in place of an event; None for anything else."""
    try:
        code = _decode_failure(payload).error.code
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return code if isinstance(code, int) and 400 <= code < 600 else 500
