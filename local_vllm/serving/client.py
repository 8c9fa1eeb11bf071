"""One call to one engine: its address and key go on, and a failure comes back as an error of this package.

The bytes travel through a `Transport`, which can be swapped; what they mean is left to the converter.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

from local_vllm.errors import EngineUnavailable, UpstreamError
from local_vllm.serving.endpoints import Endpoint

RETRY_AFTER_S = 5

HeaderLines = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one call waits: for a connection, for the whole answer, and between two pieces of a stream.

    Generation takes minutes, so the last two are only there to end what will never end.
    """

    connect_s: float = 10.0
    total_s: float = 4 * 3600.0
    idle_s: float = 3600.0


class EngineAnswer(NamedTuple):
    """A whole answer of an engine. `retry_after` is what it says of when to ask again, if anything."""

    status: int
    content_type: str
    body: bytes
    retry_after: str | None = None


class EngineStream(NamedTuple):
    """An answer of an engine whose body arrives in pieces."""

    status: int
    content_type: str
    chunks: AsyncIterator[bytes]
    retry_after: str | None = None


class NoConnection(Exception):
    """A transport could not reach the address at all."""


class ConnectionBroken(Exception):
    """A transport lost the connection before the answer was complete."""


class Transport(Protocol):
    """Moves bytes to an address and back. Raises NoConnection, ConnectionBroken and TimeoutError only.

    A cancelled call closes its connection, which is how an engine learns that nobody waits any more.
    """

    async def post(
        self, url: str, body: bytes, headers: HeaderLines, timeouts: Timeouts
    ) -> EngineAnswer: ...

    def stream(
        self, url: str, body: bytes, headers: HeaderLines, timeouts: Timeouts, *, method: str = "POST"
    ) -> AbstractAsyncContextManager[EngineStream]: ...

    async def close(self) -> None: ...


class EngineClient:
    """Calls the engines of one model server, over the connections that its replica's servers share."""

    def __init__(
        self,
        transport: Transport,
        timeouts: Timeouts = Timeouts(),
        default_headers: Mapping[str, str] | None = None,
    ) -> None:
        self._transport = transport
        self._timeouts = timeouts
        self._default_headers = dict(default_headers or {})
        self._headers = lru_cache(maxsize=256)(self._new_headers)

    async def post(
        self, endpoint: Endpoint, path: str, body: bytes, *, rank: int | None = None
    ) -> EngineAnswer:
        """POST `body` to `path` below the endpoint's base_url.

        Raises EngineUnavailable when nothing listens there, and UpstreamError (502, 504) when no whole
        answer came. An answer with an error status is an answer.
        """
        return await self._post(endpoint, endpoint.base_url + path, body, rank)

    async def post_to_root(self, endpoint: Endpoint, path: str, body: bytes) -> EngineAnswer:
        """The same for what an engine serves outside of /v1, `/tokenize` say."""
        return await self._post(endpoint, endpoint.root_url + path, body, None)

    async def _post(self, endpoint: Endpoint, url: str, body: bytes, rank: int | None) -> EngineAnswer:
        headers = self._headers(endpoint.api_key, rank)
        try:
            return await self._transport.post(url, body, headers, self._timeouts)
        except (NoConnection, ConnectionBroken, TimeoutError) as error:
            raise _as_house_error(error, endpoint, self._timeouts.total_s) from error

    @asynccontextmanager
    async def stream(
        self, endpoint: Endpoint, path: str, body: bytes, *, rank: int | None = None, method: str = "POST"
    ) -> AsyncIterator[EngineStream]:
        """The same call, or one of another method, its answer in pieces. Reading one raises what `post` raises."""
        headers = self._headers(endpoint.api_key, rank)
        try:
            async with self._transport.stream(
                endpoint.base_url + path, body, headers, self._timeouts, method=method
            ) as answer:
                yield answer._replace(chunks=self._read(answer.chunks, endpoint))
        except (NoConnection, ConnectionBroken, TimeoutError) as error:
            raise _as_house_error(error, endpoint, self._timeouts.idle_s) from error

    async def _read(self, chunks: AsyncIterator[bytes], endpoint: Endpoint) -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield chunk
        except (ConnectionBroken, TimeoutError) as error:
            raise _as_house_error(error, endpoint, self._timeouts.idle_s) from error

    def _new_headers(self, api_key: str, rank: int | None) -> HeaderLines:
        own = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key}"}
        if rank is not None:
            own["X-data-parallel-rank"] = str(rank)
        return tuple((self._default_headers | own).items())

    async def close(self) -> None:
        await self._transport.close()


def _as_house_error(
    error: Exception, endpoint: Endpoint, waited_s: float
) -> EngineUnavailable | UpstreamError:
    where = f"the engine at {endpoint.base_url}"
    if isinstance(error, NoConnection):
        return EngineUnavailable(f"No connection to {where}: {error}", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, TimeoutError):
        message = f"No answer from {where} within {waited_s:.0f} s."
        return UpstreamError(message, status=504, code="engine_timeout")
    message = f"The connection to {where} broke before its answer was complete: {error}"
    return UpstreamError(message, status=502, code="engine_connection_lost")
