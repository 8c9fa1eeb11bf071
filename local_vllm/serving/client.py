"""One call to one engine: its address and key go on, and a failure comes back as an error of this package.

The bytes travel through a `Transport`, which can be swapped; what they mean is left to the converter, and how a call
ends whose engine dies to `calls`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

from local_vllm.errors import EngineUnavailable, LocalVLLMError, UpstreamError
from local_vllm.serving.calls import Call, Calls, asking_session
from local_vllm.serving.endpoints import Endpoint

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5

HeaderLines = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one call waits: for a connection, for the whole answer, for the first piece of a stream, and between
    two pieces of it.

    Generation takes minutes, so the last three are only there to end what will never end.
    """

    connect_s: float = 10.0
    total_s: float = 4 * 3600.0
    idle_s: float = 3600.0
    first_token_s: float = 3600.0


class EngineAnswer(NamedTuple):
    """A whole answer of an engine. `retry_after` is what it says of when to ask again, if anything."""

    status: int
    content_type: str
    body: bytes
    retry_after: str | None = None


class EngineStream(NamedTuple):
    """An answer of an engine whose body arrives in pieces.

    `verdict` tells why the engine is gone, if that comes out within a moment.
    """

    status: int
    content_type: str
    chunks: AsyncIterator[bytes]
    retry_after: str | None = None
    verdict: Callable[[], Awaitable[LocalVLLMError | None]] | None = None


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
    """Calls the engines of one model server, over the connections that its replica's servers share.

    `server` is named where a deadline is met for the first time; `calls` are those of the server's endpoint source.
    """

    def __init__(
        self,
        transport: Transport,
        timeouts: Timeouts = Timeouts(),
        default_headers: Mapping[str, str] | None = None,
        *,
        calls: Calls | None = None,
        server: str = "",
    ) -> None:
        self._transport = transport
        self._timeouts = timeouts
        self._default_headers = dict(default_headers or {})
        self._headers = lru_cache(maxsize=256)(self._new_headers)
        self._calls = calls or Calls()
        self._server = server
        self._logged: set[str] = set()

    async def post(
        self, endpoint: Endpoint, path: str, body: bytes, *, rank: int | None = None
    ) -> EngineAnswer:
        """POST `body` to `path` below the endpoint's base_url.

        Raises EngineUnavailable when nothing listens there or the engine was found dead meanwhile, and UpstreamError
        (502, 504) when no whole answer came. An answer with an error status is an answer.
        """
        return await self._post(endpoint, endpoint.base_url + path, body, rank)

    async def post_to_root(self, endpoint: Endpoint, path: str, body: bytes) -> EngineAnswer:
        """The same for what an engine serves outside of /v1, `/tokenize` say."""
        return await self._post(endpoint, endpoint.root_url + path, body, None)

    async def _post(self, endpoint: Endpoint, url: str, body: bytes, rank: int | None) -> EngineAnswer:
        headers = self._headers(endpoint.api_key, rank)
        call = self._calls.begin(endpoint)
        try:
            answer = await call.until(self._transport.post(url, body, headers, self._timeouts))
            if answer.status >= 500:
                await self._unless_it_died(call)
            return answer
        except (NoConnection, ConnectionBroken, TimeoutError) as error:
            raise await self._explained(call, error) from error
        finally:
            call.close()

    @asynccontextmanager
    async def stream(
        self, endpoint: Endpoint, path: str, body: bytes, *, rank: int | None = None, method: str = "POST"
    ) -> AsyncIterator[EngineStream]:
        """The same call, or one of another method, its answer in pieces. Reading one raises what `post` raises."""
        headers = self._headers(endpoint.api_key, rank)
        call = self._calls.begin(endpoint)
        call.expect(self._timeouts.first_token_s, self._late(endpoint, "first_token", self._timeouts.first_token_s))
        try:
            async with AsyncExitStack() as stack:
                opening = self._transport.stream(
                    endpoint.base_url + path, body, headers, self._timeouts, method=method
                )
                answer = await call.until(stack.enter_async_context(opening))
                if answer.status >= 500:
                    await self._unless_it_died(call)
                yield answer._replace(chunks=self._read(answer.chunks, call), verdict=call.verdict)
        except (NoConnection, ConnectionBroken, TimeoutError) as error:
            raise await self._explained(call, error) from error
        finally:
            call.close()

    async def _read(self, chunks: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        idle_s = self._timeouts.idle_s
        try:
            piece = await call.until(anext(chunks, None))
            call.expect(idle_s, self._late(call.endpoint, "idle", idle_s))
            while piece is not None:
                yield piece
                call.heard(idle_s)
                piece = await call.until(anext(chunks, None))
        except (ConnectionBroken, TimeoutError) as error:
            raise await self._explained(call, error) from error
        except UpstreamError as error:
            self._note(error)
            raise

    async def _unless_it_died(self, call: Call) -> None:
        """An engine that dies says that something is wrong, before it is known what."""
        if (died := await call.verdict()) is not None:
            raise died

    async def _explained(self, call: Call, error: Exception) -> LocalVLLMError:
        """What a failure of the transport means: that the engine is dead, where that is found out."""
        if isinstance(error, TimeoutError):
            return self._note(self._late(call.endpoint, "total", self._timeouts.total_s))
        if (died := await call.verdict()) is not None:
            return died
        return self._note(_as_house_error(error, call.endpoint))

    def _late(self, endpoint: Endpoint, kind: str, waited_s: float) -> UpstreamError:
        what = {"total": "whole answer", "first_token": "beginning of a stream", "idle": "further token"}[kind]
        message = f"No {what} from the engine at {endpoint.base_url} within {waited_s:g} s ({kind}_timeout_s)."
        return UpstreamError(message, status=504, code="engine_timeout")

    def _note(self, error: LocalVLLMError) -> LocalVLLMError:
        """Log the first of each kind, with the session that met it."""
        kind = str(error).partition(" from ")[0].partition(" to ")[0]
        if kind not in self._logged:
            self._logged.add(kind)
            logger.warning("%s: session %s: %s", self._server, asking_session.get() or "without a name", error)
        return error

    def _new_headers(self, api_key: str, rank: int | None) -> HeaderLines:
        own = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key}"}
        if rank is not None:
            own["X-data-parallel-rank"] = str(rank)
        return tuple((self._default_headers | own).items())

    async def close(self) -> None:
        await self._transport.close()


def _as_house_error(error: Exception, endpoint: Endpoint) -> EngineUnavailable | UpstreamError:
    where = f"the engine at {endpoint.base_url}"
    if isinstance(error, NoConnection):
        return EngineUnavailable(f"No connection to {where}: {error}", retry_after_s=RETRY_AFTER_S)
    message = f"The connection to {where} broke before its answer was complete: {error}"
    return UpstreamError(message, status=502, code="engine_connection_lost")
