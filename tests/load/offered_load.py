"""Clients, good and bad: those that ask at a rate and note what came back, and those that are in the way."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp

ASK = {"model": "m", "input": "Hello!", "store": False}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended; status 0 is no answer at all."""

    session: str
    status: int
    begun: float
    latency_s: float
    retry_after: str | None = None


@dataclass(slots=True)
class Seen:
    """The latencies of those that were answered, in milliseconds, and what else came back."""

    outcomes: list[Outcome] = field(default_factory=list)

    def statuses(self) -> set[int]:
        return {each.status for each in self.outcomes}

    def ms(self, share: float) -> float:
        good = sorted(each.latency_s for each in self.outcomes if each.status == 200)
        return 1000 * good[min(len(good) - 1, int(share * len(good)))] if good else float("inf")

    def __str__(self) -> str:
        good = [each for each in self.outcomes if each.status == 200]
        return f"{len(good)} of {len(self.outcomes)} answered, p50 {self.ms(0.5):.0f} ms, p95 {self.ms(0.95):.0f} ms"


async def ask(http: aiohttp.ClientSession, url: str, session: str, body: dict | None = None) -> Outcome:
    begun = time.monotonic()
    try:
        async with http.post(url, json=body or ASK, headers={"x-session-id": session}) as answer:
            await answer.read()
            status, when = answer.status, answer.headers.get("retry-after")
    except (TimeoutError, aiohttp.ClientError, OSError):
        status, when = 0, None
    return Outcome(session, status, begun, time.monotonic() - begun, when)


def new_http(timeout_s: float = 60.0) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=timeout_s)
    )


async def offer(url: str, rate: float, seconds: float, sessions: Sequence[str]) -> Seen:
    """`rate` requests a second, whatever becomes of them, the sessions in turn."""
    seen, tasks = Seen(), []
    async with new_http() as http:
        begun = time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(begun + number / rate - time.monotonic())
            tasks.append(asyncio.ensure_future(ask(http, url, sessions[number % len(sessions)])))
        seen.outcomes += await asyncio.gather(*tasks)
    return seen


async def one_by_one(url: str, session: str, until: asyncio.Event, pause_s: float = 0.1) -> Seen:
    """A client that asks, waits for its answer, and asks again; one that is refused waits as it was told."""
    seen = Seen()
    async with new_http() as http:
        while not until.is_set():
            seen.outcomes.append(outcome := await ask(http, url, session))
            await asyncio.sleep(float(outcome.retry_after or pause_s))
    return seen


async def bystander(url: str, seconds: float, rate: float = 10.0) -> Seen:
    """Somebody who asks now and then, and has nothing to do with the others."""
    return await offer(url, rate, seconds, ["bystander"])


# In the way


@asynccontextmanager
async def idle(url: str, count: int) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Connections that say nothing."""
    async with _connections(url, count) as writers:
        yield writers


@asynccontextmanager
async def dripping(url: str, count: int, *, headers_first: bool, every_s: float = 0.2) -> AsyncIterator[None]:
    """Requests that come a byte at a time: from the first header on, or from the body on."""
    body = json.dumps(ASK | {"input": "x" * 10_000}).encode()
    head = _head(url, len(body))
    sent, rest = (head[:5], head[5:] + body) if not headers_first else (head, body)

    async def drip(writer: asyncio.StreamWriter) -> None:
        for byte in rest:
            writer.write(bytes([byte]))
            await asyncio.sleep(every_s)

    async with _connections(url, count) as writers:
        for writer in writers:
            writer.write(sent)
        tasks = [asyncio.ensure_future(drip(writer)) for writer in writers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@asynccontextmanager
async def reading_nothing(url: str, count: int, blocks: int = 1000) -> AsyncIterator[None]:
    """Streams that are asked for and not read."""
    body = json.dumps(ASK | {"input": f"BLOCKS:{blocks}", "stream": True}).encode()
    async with _connections(url, count, limit=1024) as writers:
        for writer in writers:
            writer.write(_head(url, len(body)) + body)
        yield


async def vanishing(url: str, until: asyncio.Event, every_s: float = 0.05) -> int:
    """Clients that ask and go, one after the other; how many there were."""
    body = json.dumps(ASK | {"stream": True}).encode()
    count = 0
    while not until.is_set():
        async with _connections(url, 1) as (writer,):
            writer.write(_head(url, len(body)) + body)
            await asyncio.sleep(0.02)
        count += 1
        await asyncio.sleep(every_s)
    return count


@asynccontextmanager
async def _connections(url: str, count: int, limit: int = 2**16) -> AsyncIterator[list[asyncio.StreamWriter]]:
    where, writers = urlsplit(url), []
    try:
        for _ in range(count):
            reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=limit)
            writers.append(writer)
            reader._transport.pause_reading()  # type: ignore[attr-defined]
        yield writers
    finally:
        for writer in writers:
            writer.transport.abort()


def _head(url: str, length: int) -> bytes:
    where = urlsplit(url)
    return (
        f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
        f"x-session-id: in-the-way\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def median_ms(values: Sequence[float]) -> float:
    return 1000 * statistics.median(values)
