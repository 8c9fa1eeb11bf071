"""One call to one agent over HTTP: a rollout comes back, or the class of what went wrong.

Retries and pauses are left to collect.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

import aiohttp
import msgspec
from yarl import URL

from local_vllm.rollouts.failures import Failed, Failure, failure_of
from local_vllm.rollouts.results import Timings, Verified, timings, verified

# A rollout may be many turns in a long queue; this only ends what would never end.
ROLLOUT_DEADLINE_S = 2 * 3600.0
CONNECT_DEADLINE_S = 30.0
HEALTH_DEADLINE_S = 10.0
KEEP_ALIVE_S = 3.0
MESSAGE_CHARACTERS = 2000


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


class Answered(NamedTuple):
    """An attempt that succeeded."""

    rollout: Verified
    timings: Timings
    model_server: str | None


class Agents:
    """The agents of a collection, each at `url_of(name)`, over one pool of `concurrency` connections."""

    def __init__(
        self,
        url_of: Callable[[str], str],
        concurrency: int,
        deadline_s: float = ROLLOUT_DEADLINE_S,
        key_of: Callable[[str], str | None] = lambda agent: None,
    ) -> None:
        self._url_of = url_of
        self._concurrency = concurrency
        self._timeout = aiohttp.ClientTimeout(total=deadline_s, sock_connect=CONNECT_DEADLINE_S)
        self._deadline_s = deadline_s
        self._key_of = key_of
        self._run_urls: dict[str, tuple[URL, dict[str, str]]] = {}

    async def __aenter__(self) -> Agents:
        # One more than is in flight, for the look at an agent's health.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._concurrency + 1, keepalive_timeout=KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json"},
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=1 << 20,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def run(self, agent: str, body: bytes) -> Answered | Failed:
        """Roll one row out, once."""
        begun = time.perf_counter()
        try:
            url, with_key = self._run_url(agent)
            async with self._session.post(url, data=body, headers=with_key, timeout=self._timeout) as answer:
                content = await answer.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return _failed(error, self._url_of(agent), self._deadline_s)
        if answer.status != 200:
            return _refused(answer, content)
        try:
            rollout = verified(content)
        except (ValueError, msgspec.MsgspecError, RecursionError) as error:
            shown = content[:200].decode(errors="replace")
            return Failed(Failure.INVALID_ANSWER, f"The answer is no rollout: {error}. It begins: {shown}", 200)
        headers = answer.headers
        took = timings(time.perf_counter() - begun, headers.get("server-timing", ""))
        return Answered(rollout, took, headers.get("x-model-server"))

    async def absence(self, agent: str) -> Failed | None:
        """Why an agent cannot answer now; None when its health is good."""
        url = f"{self._url_of(agent)}/health"
        limit = aiohttp.ClientTimeout(total=HEALTH_DEADLINE_S)
        try:
            async with self._session.get(url, timeout=limit) as answer:
                content = await answer.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return _failed(error, url, HEALTH_DEADLINE_S)
        return None if answer.status == 200 else _refused(answer, content)

    async def refusal_of_all(self, agent: str, failed: Failed) -> str | None:
        """Why an agent that is up would refuse every rollout as it did this one; None when that is the row's own fault.

        A 404 may be of something that the row names, so it is asked whether there is a `/run`.
        """
        url, with_key = self._run_url(agent)
        if failed.status == 401:
            return f"{url} wants another key, of its own or of the models behind it: {failed.message}"
        if failed.status == 405 or (failed.status == 404 and await self._status(url, with_key) == 404):
            return f"`{agent}` is no agent, since there is nothing to roll out at {url}: {failed.message}"
        return None

    async def _status(self, url: URL, headers: dict[str, str]) -> int | None:
        limit = aiohttp.ClientTimeout(total=HEALTH_DEADLINE_S)
        try:
            async with self._session.get(url, headers=headers, timeout=limit) as answer:
                return answer.status
        except (TimeoutError, aiohttp.ClientError, OSError):
            return None

    def _run_url(self, agent: str) -> tuple[URL, dict[str, str]]:
        """Where an agent rolls out, and the header with its key."""
        known = self._run_urls.get(agent)
        if known is None:
            key = self._key_of(agent)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            known = self._run_urls[agent] = (URL(f"{self._url_of(agent)}/run"), headers)
        return known


def _failed(error: Exception, url: str, deadline_s: float) -> Failed:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        reason = getattr(error, "strerror", None) or error
        return Failed(Failure.NO_CONNECTION, f"No connection to {url}: {reason}")
    if isinstance(error, asyncio.TimeoutError):
        return Failed(Failure.TIMEOUT, f"No answer from {url} within {deadline_s:.0f} s")
    return Failed(Failure.CONNECTION_LOST, f"The connection to {url} broke: {error or type(error).__name__}")


def _refused(answer: aiohttp.ClientResponse, content: bytes) -> Failed:
    wait = 0.0
    with suppress(ValueError):
        wait = max(0.0, float(answer.headers.get("retry-after", 0)))
    return Failed(failure_of(answer.status), _message(content) or f"status {answer.status}", answer.status, wait)


def _message(content: bytes) -> str:
    try:
        error = msgspec.json.decode(content, type=_ErrorBody).error
    except msgspec.MsgspecError:
        return content[:MESSAGE_CHARACTERS].decode(errors="replace").strip()
    coded = f"{error.code}: {error.message}" if error.code else error.message
    return coded[:MESSAGE_CHARACTERS]
