"""The transport of requests to engines: HTTP/1.1 over connections that a replica keeps open and uses again.

It moves bytes; endpoints, keys and the meaning of a failure are left to `client`. A general HTTP client takes several
times the CPU time for each request: more than all the rest of a replica does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from aiohappyeyeballs import start_connection

from local_vllm.serving.client import ConnectionBroken, EngineAnswer, EngineStream, HeaderLines, NoConnection, Timeouts
from local_vllm.serving.http_connection import Connection

# vLLM's server drops a connection that was idle for 5 s; ours are given up before that.
KEEP_ALIVE_S = 3.0
# An address that is silent may have a neighbour that is not: IPv4 beside IPv6, say.
NEXT_ADDRESS_AFTER_S = 0.25
_KEPT_IN_URL = "/%:@!$&'()*+,;=~?"


class Origin(NamedTuple):
    """Where a connection leads."""

    host: str
    port: int
    is_tls: bool


class HTTPTransport:
    """Connections are made in the event loop of the call that needs them. Proxies of the environment are for the world
    outside, not for the cluster: they are not asked.
    """

    def __init__(self) -> None:
        self._idle: dict[Origin, list[Connection]] = {}
        self._busy: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def post(self, url: str, body: bytes, headers: HeaderLines, timeouts: Timeouts) -> EngineAnswer:
        origin, head = _request("POST", url, headers)
        connection = await self._ask(origin, head, body, timeouts, streamed=False)
        try:
            return EngineAnswer(
                connection.status, connection.content_type, await connection.take(), connection.retry_after
            )
        finally:
            self._release(origin, connection)

    @asynccontextmanager
    async def stream(
        self, url: str, body: bytes, headers: HeaderLines, timeouts: Timeouts, *, method: str = "POST"
    ) -> AsyncIterator[EngineStream]:
        origin, head = _request(method, url, headers)
        connection = await self._ask(origin, head, body, timeouts, streamed=True)
        try:
            yield EngineStream(connection.status, connection.content_type, Pieces(connection), connection.retry_after)
        finally:
            self._release(origin, connection)

    async def _ask(
        self, origin: Origin, head: bytes, body: bytes, timeouts: Timeouts, *, streamed: bool
    ) -> Connection:
        """A connection that has an answer, or its beginning if it is `streamed`.

        One that was dropped while it was idle has carried the request to nobody, so another carries it. It may also
        have been the death of the engine, which then accepts no other.
        """
        head, within_s = head % len(body), timeouts.total_s
        connection = self._used(origin)
        if connection is None:
            connection = await self._connected(origin, timeouts)
            return await self._asked(connection, head, body, streamed, within_s)
        try:
            return await self._asked(connection, head, body, streamed, within_s)
        except ConnectionBroken as error:
            if not connection.was_stale:
                raise
            broken = error
        try:
            connection = await self._connected(origin, timeouts)
        except NoConnection:
            raise broken from None
        return await self._asked(connection, head, body, streamed, within_s)

    async def _asked(
        self, connection: Connection, head: bytes, body: bytes, streamed: bool, within_s: float
    ) -> Connection:
        self._busy.add(connection)
        try:
            await connection.ask(head, body, streamed=streamed, within_s=within_s)
        except BaseException:
            self._busy.discard(connection)
            raise
        return connection

    def _used(self, origin: Origin) -> Connection | None:
        """The one that was used last, so that those which are not needed grow old."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connected(self, origin: Origin, timeouts: Timeouts) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeouts.connect_s):
                addresses = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
                plain = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_AFTER_S, loop=loop)
                tls = {"ssl": _tls(), "server_hostname": origin.host} if origin.is_tls else {}
                _, connection = await loop.create_connection(lambda: Connection(loop), sock=plain, **tls)
        except TimeoutError:
            raise NoConnection("it did not accept a connection in time.") from None
        except OSError as error:
            raise NoConnection(f"{_in_words(error)}.") from error
        return connection

    def _release(self, origin: Origin, connection: Connection) -> None:
        self._busy.discard(connection)
        if connection.finish():
            self._idle.setdefault(origin, []).append(connection)
            if self._sweep is None:
                self._sweep_later()

    def _sweep_later(self) -> None:
        self._sweep = asyncio.get_running_loop().call_later(KEEP_ALIVE_S / 2, self._close_old)

    def _close_old(self) -> None:
        """Those at the beginning of a list have been idle the longest."""
        oldest = asyncio.get_running_loop().time() - KEEP_ALIVE_S / 2
        for origin, idle in list(self._idle.items()):
            kept = []
            for connection in idle:
                if connection.is_open and connection.idle_since > oldest:
                    kept.append(connection)
                else:
                    connection.close()
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]
        self._sweep = None
        if self._idle:
            self._sweep_later()

    async def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in [*self._busy, *(each for idle in self._idle.values() for each in idle)]:
            connection.close()
        self._idle.clear()
        self._busy.clear()


class Pieces:
    """The body of a streamed answer: each time all that has come since."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        if piece := await self._connection.take():
            return piece
        raise StopAsyncIteration


@lru_cache(maxsize=1024)
def _request(method: str, url: str, headers: HeaderLines) -> tuple[Origin, bytes]:
    """Where a request goes, and its head with `%d` for the length of the body."""
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    host = (parts.hostname or "").encode("idna").decode()
    origin = Origin(host, parts.port or (443 if is_tls else 80), is_tls)
    path = quote(parts.path or "/", safe=_KEPT_IN_URL)
    if parts.query:
        path = f"{path}?{quote(parts.query, safe=_KEPT_IN_URL)}"
    named = f"[{host}]" if ":" in host else host
    lines = [("Host", f"{named}:{parts.port}" if parts.port else named), *headers]
    for name, value in lines:
        if any(character in f"{name}{value}" for character in "\r\n\0"):
            raise NoConnection(f"the header {name!r} would have a line break in it.")
    text = "".join([f"{method} {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in lines)])
    return origin, text.replace("%", "%%").encode() + b"Content-Length: %d\r\n\r\n"


def _in_words(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
