"""The default transport: one pooled aiohttp session for a replica.

It moves bytes; endpoints, keys and the meaning of a failure are left to `client`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Any

import aiohttp
from yarl import URL

from local_vllm.serving.client import (
    ConnectionBroken,
    EngineAnswer,
    EngineStream,
    HeaderLines,
    NoConnection,
    Timeouts,
)

# vLLM's server drops a connection that was idle for 5 s; ours are given up before that.
KEEP_ALIVE_S = 3.0
# A connection that was dropped while idle shows it at once; later than this, the engine was at work on it.
STALE_WITHIN_S = 1.0
MAX_CONNECTIONS = 16_384


class AiohttpTransport:
    """Opens its session at the first call, in the event loop of that call."""

    def __init__(self, max_connections: int = MAX_CONNECTIONS) -> None:
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, url: str, body: bytes, headers: HeaderLines, timeouts: Timeouts
    ) -> EngineAnswer:
        answer = await self._head_of_answer("POST", url, body, headers, timeouts)
        try:
            async with answer:
                return EngineAnswer(answer.status, _content_type(answer), await answer.read(), _retry_after(answer))
        except (aiohttp.ClientError, OSError) as error:
            raise _translated(error) from error

    @asynccontextmanager
    async def stream(
        self, url: str, body: bytes, headers: HeaderLines, timeouts: Timeouts, *, method: str = "POST"
    ) -> AsyncIterator[EngineStream]:
        answer = await self._head_of_answer(method, url, body, headers, timeouts)
        try:
            async with answer:
                yield EngineStream(answer.status, _content_type(answer), _pieces(answer), _retry_after(answer))
        except (aiohttp.ClientError, OSError) as error:
            raise _translated(error) from error

    async def _head_of_answer(
        self, method: str, url: str, body: bytes, headers: HeaderLines, timeouts: Timeouts
    ) -> aiohttp.ClientResponse:
        """An answer whose body is still to be read.

        A connection that was used before may have been dropped while it was idle: then the request was not read, and
        is sent again. It may also have been the death of the engine, which then accepts no other.
        """
        call = partial(self._open().request, method, _parsed(url), headers=headers, timeout=_limits(timeouts))
        connection, begun = _Connection(), time.monotonic()
        try:
            return await call(data=body or None, trace_request_ctx=connection)
        except (aiohttp.ClientError, OSError) as error:
            broken = _translated(error)
            stale = connection.is_used and time.monotonic() - begun <= STALE_WITHIN_S
            if not stale or not isinstance(broken, ConnectionBroken):
                raise broken from error
        try:
            return await call(data=body or None)
        except (aiohttp.ClientError, OSError) as error:
            again = _translated(error)
            raise (broken if isinstance(again, NoConnection) else again) from error

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._new_session()
        return self._session

    def _new_session(self) -> aiohttp.ClientSession:
        """Proxies of the environment are for the world outside, not for the cluster: trust_env is off."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            trust_env=False,
            read_bufsize=1 << 20,
            trace_configs=[_tells_of_reuse()],
        )


class _Connection:
    """What a call finds out about the connection that it was given."""

    __slots__ = ("is_used",)

    def __init__(self) -> None:
        self.is_used = False


def _tells_of_reuse() -> aiohttp.TraceConfig:
    async def told(session: object, context: Any, params: object) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.is_used = True

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(told)
    return tracing


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.content.iter_any():
            yield piece
    except (aiohttp.ClientError, OSError) as error:
        raise _translated(error) from error


def _content_type(answer: aiohttp.ClientResponse) -> str:
    return answer.headers.get("Content-Type", "application/octet-stream")


def _retry_after(answer: aiohttp.ClientResponse) -> str | None:
    return answer.headers.get("Retry-After")


@lru_cache(maxsize=1024)
def _parsed(url: str) -> URL:
    return URL(url)


@lru_cache(maxsize=16)
def _limits(timeouts: Timeouts) -> aiohttp.ClientTimeout:
    """Who reads the pieces of a stream knows how long each may take."""
    return aiohttp.ClientTimeout(total=timeouts.total_s, sock_connect=timeouts.connect_s)


def _translated(error: Exception) -> Exception:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return NoConnection("it did not accept a connection in time.")
    if isinstance(error, asyncio.TimeoutError):
        return TimeoutError()
    if isinstance(error, aiohttp.ClientConnectorError):
        return NoConnection(f"{error.strerror or error}.")
    return ConnectionBroken(str(error) or type(error).__name__)
