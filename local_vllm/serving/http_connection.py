"""One connection to an engine's HTTP server, which carries one exchange after another.

Which connection a request takes is left to `http_transport`, parsing to httptools.
"""

from __future__ import annotations

import asyncio

import httptools

from local_vllm.serving.client import ConnectionBroken

MAX_HEAD_BYTES = 64 << 10
# A stream is not read further while so much of it waits to be taken.
MAX_WAITING_BYTES = 1 << 20
# A connection that was dropped while idle shows it at once; later than this, the engine was at work on it.
STALE_WITHIN_S = 1.0


class Connection(asyncio.Protocol):
    """`ask`, then read `status` and the headers, and what came of the body with `take`.

    After the last piece it is used again, if `is_reusable`.
    """

    __slots__ = (
        "status", "content_type", "retry_after", "is_reusable", "is_open", "idle_since",
        "_loop", "_transport", "_parser", "_asked_before", "_asked_at", "_is_streamed", "_has_head", "_is_whole",
        "_has_length", "_heard_bytes", "_pieces", "_waiting_bytes", "_is_paused", "_error", "_waiter", "_deadline",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.content_type = ""
        self.retry_after: str | None = None
        self.is_reusable = False
        self.is_open = False
        self.idle_since = 0.0
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._asked_before = False
        self._waiter: asyncio.Future[None] | None = None
        self._begin(streamed=False)

    def _begin(self, *, streamed: bool) -> None:
        self._is_streamed = streamed
        self._asked_at = self._loop.time()
        self._has_head = self._is_whole = self._has_length = self._is_paused = False
        self._heard_bytes = self._waiting_bytes = 0
        self._pieces: list[bytes] = []
        self._error: Exception | None = None
        self._deadline: asyncio.TimerHandle | None = None

    async def ask(self, head: bytes, body: bytes, *, streamed: bool, within_s: float) -> None:
        """Send a request; return when its answer is whole, or begins if it is `streamed`.

        `within_s` is for all of the answer. Raises ConnectionBroken and TimeoutError; then, and when cancelled, the
        connection is closed.
        """
        self._begin(streamed=streamed)
        self.is_reusable = False
        self.content_type, self.retry_after = "application/octet-stream", None
        self._deadline = self._loop.call_later(within_s, self._break, TimeoutError())
        if body:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head)
        try:
            while not (self._is_whole or (streamed and self._has_head)):
                await self._progress()
        except BaseException:
            self.close()
            raise

    async def take(self) -> bytes:
        """What has come of the body since, as one piece; nothing at its end. Raises what `ask` raises."""
        while not self._pieces and not self._is_whole:
            await self._progress()
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces = []
        self._waiting_bytes = 0
        if self._is_paused:
            self._resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def was_stale(self) -> bool:
        """Whether a broken exchange can be had again: it was dropped while idle, so nobody has read the request."""
        waited_s = self._loop.time() - self._asked_at
        return self._asked_before and not self._heard_bytes and waited_s <= STALE_WITHIN_S

    def finish(self) -> bool:
        """Whether it can be used again; otherwise it is closed."""
        self._asked_before = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self._is_paused:
            self._resume()
        if self.is_open and self._is_whole and self.is_reusable:
            self.idle_since = self._loop.time()
            return True
        self.close()
        return False

    def _resume(self) -> None:
        self._is_paused = False
        self._transport.resume_reading()

    def close(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    async def _progress(self) -> None:
        """Wait until more has come. Raises what the exchange has failed of."""
        if self._error is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None and not self._is_whole:
            raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _break(self, error: Exception) -> None:
        """What is waited for will not come."""
        if self._error is None:
            self._error = error
        self.is_open = False
        self._transport.abort()
        self._wake()

    # ---- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._heard_bytes += len(data)
        if self._is_whole:
            return self._break(ConnectionBroken("it sent more than it was asked for."))
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._is_whole:
                return self._break(ConnectionBroken(f"its answer is no HTTP: {error}."))
            self.is_reusable = False
        if not self._has_head and self._heard_bytes > MAX_HEAD_BYTES:
            return self._break(ConnectionBroken("the headers of its answer are too long."))
        if self._is_whole or (self._is_streamed and self._has_head):
            self._wake()
        if self._is_streamed and self._waiting_bytes > MAX_WAITING_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if error is None and self._has_head and not self._has_length:
            self._is_whole = True
        elif self._error is None:
            self._error = ConnectionBroken(str(error or "it was closed by the engine."))
        self._wake()

    # ---- what the parser calls

    def on_message_begin(self) -> None:
        if self._is_whole:
            raise ValueError("nobody has asked for another answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.content_type = value.decode("latin-1")
        elif name == b"content-length" or name == b"transfer-encoding":
            self._has_length = True
        elif name == b"retry-after":
            self.retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._waiting_bytes += len(piece)

    def on_message_complete(self) -> None:
        """An interim answer (100 Continue) is followed by another."""
        if self._has_head:
            self._is_whole = True
            self.is_reusable = self._parser.should_keep_alive()
