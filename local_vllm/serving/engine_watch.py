"""Looks at an engine from outside, over and over: whether anything answers at its address, how many data-parallel
ranks it has, and how many requests wait at each. What comes of it is left to the endpoint sources.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace

import aiohttp

from local_vllm.serving.endpoints import Endpoint

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
# An engine that was gone is wanted back soon, and a refused connection costs nothing.
LOOK_AGAIN_S = 1.0
LOOK_DEADLINE_S = 10.0
# How long a replica that starts waits to know what it will tell its first clients.
FIRST_LOOK_S = 2.0
# What proxies answer when nothing is behind them.
NOBODY_THERE = (502, 503, 504)

_WAITING = re.compile(r"^vllm:num_requests_waiting\{([^}]*)\} (\S+)", re.MULTILINE)
_RANK = re.compile(r'\bengine="(\d+)"')


class EngineWatch:
    """One engine. `changed` is called whenever `endpoint`, `waiting` or `problem` may have changed.

    Attributes:
        endpoint: as it was given, with the number of its ranks as soon as the engine has told it.
        waiting: requests that wait, for each rank; empty where the engine does not tell.
        problem: why nothing can be asked there, as a sentence; None while it can.
    """

    def __init__(
        self, endpoint: Endpoint, changed: Callable[[], None], *, look_every_s: float = LOOK_EVERY_S
    ) -> None:
        self.endpoint = endpoint
        self.waiting: tuple[int, ...] = ()
        self.problem: str | None = None
        self._changed = changed
        self._look_every_s = look_every_s
        self._looked = asyncio.Event()
        self._look_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._watch())

    async def first_look(self) -> None:
        """Waits until the engine was looked at once, though not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                await self._looked.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def lost(self) -> None:
        """Somebody has found nobody there, before the next look would have."""
        if self._task is not None and self.problem is None:
            self._told((), f"No connection to the engine at {self.endpoint.base_url}.")
            self._look_now.set()

    async def _watch(self) -> None:
        # A connection for each look: whether there is one to be had is a part of the question.
        connector = aiohttp.TCPConnector(force_close=True)
        timeout = aiohttp.ClientTimeout(total=LOOK_DEADLINE_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            while True:
                self._told(*await self._look(session))
                self._looked.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_every_s if self.problem is None else LOOK_AGAIN_S):
                        await self._look_now.wait()
                self._look_now.clear()

    async def _look(self, session: aiohttp.ClientSession) -> tuple[tuple[int, ...], str | None]:
        """A busy engine may answer late: only one that cannot be reached is a problem."""
        where = f"the engine at {self.endpoint.base_url}"
        headers = {"Authorization": f"Bearer {self.endpoint.api_key}"}
        try:
            async with session.get(f"{self.endpoint.root_url}/metrics", headers=headers) as answer:
                if answer.status in NOBODY_THERE:
                    return (), f"No engine answers at {self.endpoint.base_url}: status {answer.status}."
                return waiting_by_rank(await answer.text(errors="replace")), None
        except aiohttp.ConnectionTimeoutError:
            return (), f"No connection to {where}: it did not accept one in time."
        except TimeoutError:
            return self.waiting, None
        except (aiohttp.ClientConnectionError, OSError) as error:
            errno = getattr(error, "errno", None)
            return (), f"No connection to {where}: {os.strerror(errno) if errno else error}."
        except aiohttp.ClientError:
            return self.waiting, None

    def _told(self, waiting: tuple[int, ...], problem: str | None) -> None:
        if problem is not None and self.problem is None:
            logger.warning("%s", problem)
        elif problem is None and self.problem is not None:
            logger.warning("The engine at %s answers again.", self.endpoint.base_url)
        if waiting and len(waiting) != self.endpoint.ranks:
            self.endpoint = replace(self.endpoint, ranks=len(waiting))
        self.waiting, self.problem = waiting, problem
        self._changed()


def waiting_by_rank(metrics: str) -> tuple[int, ...]:
    """What vLLM's `/metrics` tell of requests that wait, for each data-parallel rank; empty if they do not.

    vLLM numbers the ranks of one server from 0. Where the numbers are others, the ranks are servers of their own.
    """
    found: dict[int, float] = {}
    for labels, value in _WAITING.findall(metrics):
        rank = _RANK.search(labels)
        number = int(rank[1]) if rank else 0
        found[number] = found.get(number, 0.0) + float(value)
    if sorted(found) != list(range(len(found))):
        return (int(sum(found.values())),)
    return tuple(int(found[number]) for number in range(len(found)))
