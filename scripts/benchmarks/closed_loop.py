"""The client: connections of which each sends its next request when the answer to the one before is complete.

It parses nothing but HTTP, so that it does not take the CPU from what it measures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

LIMIT_S = 180.0
MOST_ERRORS = 50
# An answer that is shorter than this part of the first one is not the same answer.
SHORTEST = 0.9


@dataclass(slots=True)
class Offered:
    """What became of the requests. `answer` is the first good one, `error` what the first bad one was."""

    latencies_s: list[float] = field(default_factory=list)
    took_s: float = 0.0
    errors: int = 0
    answer: bytes = b""
    error: str = ""

    def ms(self, share: float) -> float:
        """That quantile of the latencies."""
        good = sorted(self.latencies_s)
        return 1000 * good[min(len(good) - 1, int(share * len(good)))] if good else float("nan")

    def good(self, body: bytes, latency_s: float) -> None:
        self.answer = self.answer or body
        if len(body) < SHORTEST * len(self.answer):
            self.bad(f"{len(body)} bytes where others have {len(self.answer)}")
        else:
            self.latencies_s.append(latency_s)

    def bad(self, why: str) -> None:
        self.errors += 1
        self.error = self.error or why


async def offer(
    url: str,
    body: bytes,
    connections: int,
    *,
    requests: int | None = None,
    seconds: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> Offered:
    """Send the request over and over: `requests` times, or for `seconds` (those on the way are waited for)."""
    load = _Load(url, body, requests, seconds, headers or {})
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*(load.connection() for _ in range(min(connections, requests or connections))))
    except TimeoutError:
        load.offered.bad(f"not done after {LIMIT_S:.0f} s")
    load.offered.took_s = time.perf_counter() - begun
    return load.offered


class _Load:
    """The requests that are left, shared by the connections."""

    def __init__(
        self, url: str, body: bytes, requests: int | None, seconds: float | None, headers: Mapping[str, str]
    ) -> None:
        place = urlsplit(url)
        self._address = (place.hostname, place.port)
        named = {"host": place.netloc, "content-type": "application/json", "content-length": len(body), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        self.request = f"POST {place.path} HTTP/1.1\r\n{head}\r\n".encode() + body
        self.offered = Offered()
        self._left = requests
        self._end = None if seconds is None else time.perf_counter() + seconds

    async def connection(self) -> None:
        """One connection after the other, for as long as servers close them and requests are left."""
        loop = asyncio.get_running_loop()
        while self.more():
            closed = loop.create_future()
            try:
                await loop.create_connection(lambda: _Connection(self, closed), *self._address)
            except OSError as error:
                self.offered.bad(str(error))
                continue
            await closed

    def more(self) -> bool:
        if self.offered.errors >= MOST_ERRORS or self._left == 0:
            return False
        return self._end is None or time.perf_counter() < self._end

    def take(self) -> bool:
        if not self.more():
            return False
        if self._left is not None:
            self._left -= 1
        return True


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load, closed: asyncio.Future[None]) -> None:
        self._load = load
        self._closed = closed
        self._parser = HttpResponseParser(self)
        self._waiting = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        if not self._load.take():
            self._transport.close()
            return
        self._pieces: list[bytes] = []
        self._waiting = True
        self._begun = time.perf_counter()
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._load.offered.bad(f"not HTTP: {error}")
            self._waiting = False
            self._transport.close()

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        latency_s, self._waiting = time.perf_counter() - self._begun, False
        body, status = b"".join(self._pieces), self._parser.get_status_code()
        if status == 200:
            self._load.offered.good(body, latency_s)
        else:
            self._load.offered.bad(f"status {status}: {body[:500].decode(errors='replace')}")
        if self._parser.should_keep_alive():
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting:
            self._load.offered.bad("the connection broke off")
        if not self._closed.done():
            self._closed.set_result(None)
