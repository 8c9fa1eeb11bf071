"""A streamed response between an engine and a client: the engine's server-sent events in, ours out, each as
soon as it is there. What they mean is left to the converter, connections to `client`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import NamedTuple

from local_vllm.errors import LocalVLLMError, UpstreamError
from local_vllm.protocol.calls import ChatCall, Doubt
from local_vllm.protocol.events import ResponseEvents, error_status, events_of_whole
from local_vllm.serving.client import EngineStream
from local_vllm.serving.replies import Headers, Reply, logger

# Proxies on the way are told to pass every event on at once.
UNBUFFERED: Headers = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
EVENT_STREAM: Headers = ((b"content-type", b"text/event-stream; charset=utf-8"), *UNBUFFERED)

# An engine that has said its last word ends its stream at once; then its connection can be used again.
GOODBYE_S = 1.0


def as_asked(call: ChatCall, answer: bytes) -> Reply:
    """A response that is there whole, in events where the client wants those."""
    return Reply(200, events_of_whole(answer), EVENT_STREAM) if call.stream else Reply(200, answer)


class EventReader:
    """Finds the data of server-sent events in bytes that come in pieces, cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._ended_in_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that are whole now, in order. Comments and other fields are dropped."""
        if self._ended_in_cr or b"\r" in piece:
            piece = self._with_plain_line_ends(piece)
        if not self._rest and _is_one_event(piece):
            return [piece[6:-2]]
        whole, end, self._rest = (self._rest + piece).rpartition(b"\n\n")
        return _data_of_events(whole) if end else []

    def rest(self) -> list[bytes]:
        """The data of an event that the engine did not end with an empty line before it went."""
        rest, self._rest = self._rest, b""
        return _data_of_events(rest)

    def _with_plain_line_ends(self, piece: bytes) -> bytes:
        if self._ended_in_cr and piece:
            piece = piece.removeprefix(b"\n")  # the second half of a line end
            self._ended_in_cr = False
        self._ended_in_cr = self._ended_in_cr or piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _is_one_event(piece: bytes) -> bool:
    """What nearly every read of an engine's stream is."""
    return piece.startswith(b"data: ") and piece.endswith(b"\n\n") and piece.find(b"\n") == len(piece) - 2


def _data_of_events(events: bytes) -> list[bytes]:
    if events.startswith(b"data: "):
        simple = events[6:].split(b"\n\ndata: ")
        if events.count(b"\n") == 2 * len(simple) - 2:
            return simple
    found: list[bytes] = []
    for event in events.split(b"\n\n"):
        if event.startswith(b"data: ") and b"\n" not in event:
            found.append(event[6:])
        elif lines := [line for line in event.split(b"\n") if line.startswith(b"data:")]:
            found.append(b"\n".join([line[5:].removeprefix(b" ") for line in lines]))
    return found


class Refused(NamedTuple):
    """An error that the engine streamed in place of its first token."""

    status: int
    body: bytes


class ResponseStream:
    """One response on its way. `open` it, then send its `chunks`: one for each read from the engine. So a
    slow client slows the engine's stream, and nothing piles up here.

    `tokenize` fetches the prompt's token ids if the stream leaves them out. `warn` is told
    what is suspicious, and `keep` is given the whole response, if there is one. `failure` is what it broke off for.
    """

    def __init__(
        self,
        engine: EngineStream,
        events: ResponseEvents,
        *,
        tokenize: Callable[[], Awaitable[bytes]],
        warn: Callable[[Sequence[Doubt]], None],
        keep: Callable[[bytes], None] | None = None,
    ) -> None:
        self._engine = engine
        self._events = events
        self._tokenize = tokenize
        self._warn = warn
        self._keep = keep
        self._reader = EventReader()
        self._first: list[bytes] = []
        self.failure: Exception | None = None

    async def open(self) -> Refused | None:
        """Waits for the engine's first event. Raises UpstreamError when there will be none."""
        kind = self._engine.content_type
        if not kind.startswith("text/event-stream"):
            message = f"The engine was asked for a stream and answered with {kind}."
            raise UpstreamError(message, code="bad_gateway")
        self._first = await self._first_events()
        if not self._first:
            raise _broken_off()
        status = error_status(self._first[0])
        return None if status is None else Refused(status, self._first[0])

    async def _first_events(self) -> list[bytes]:
        async for piece in self._engine.chunks:
            if found := self._reader.feed(piece):
                return found
        return self._reader.rest()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The events as bytes. However the engine's stream ends, the last of them says so."""
        written: list[bytes] = []
        try:
            self._add(self._first, written)
            while not self._events.is_over:
                if any(written):
                    yield b"".join(written)
                written.clear()
                piece = await anext(self._engine.chunks, None)
                if piece is None:
                    self._add(self._reader.rest(), written)
                    break
                self._add(self._reader.feed(piece), written)
            written.append(await self._end())
        except LocalVLLMError as error:
            written.append(self._last(error))
        except Exception as error:
            logger.error("Unexpected failure in the middle of a stream", exc_info=error)
            self.failure = error
            written.append(self._events.fail(error))
        yield b"".join(written)
        await self._let_go()

    def _add(self, payloads: list[bytes], written: list[bytes]) -> None:
        """What was written stays written when one of the engine's events is an error."""
        events = self._events
        for payload in payloads:
            written.append(events.add(payload))
            if events.is_over:
                return

    async def _end(self) -> bytes:
        if not self._events.has_said_all:
            raise _broken_off()
        tokenized = await self._tokenize() if self._events.needs_tokenize else None
        return self._finished(tokenized)

    def _finished(self, tokenized: bytes | None = None) -> bytes:
        last = self._events.finish(tokenized)
        self._warn(self._events.doubts)
        if self._keep is not None and self._events.response is not None:
            self._keep(self._events.response)
        return last

    def _last(self, error: LocalVLLMError) -> bytes:
        """An answer that was whole before something broke is whole."""
        if self._events.has_said_all:
            return self._finished()
        self.failure = error
        return self._events.fail(error)

    async def _let_go(self) -> None:
        """Lets the connection be used again when the answer is whole; otherwise it will be closed."""
        if not self._events.has_said_all:
            return
        with contextlib.suppress(LocalVLLMError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                async for _ in self._engine.chunks:
                    pass


def _broken_off() -> UpstreamError:
    return UpstreamError(
        "The engine ended its stream before its answer was complete.", code="engine_connection_lost"
    )
