"""The pause of a whole collection while an agent cannot answer: one look at its health now and then, nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto

from local_vllm.rollouts.failures import Failed

# An engine of many gigabytes takes its time to come back.
DEADLINE_S = 1800.0
LOOK_FIRST_S = 1.0
LOOK_AT_LEAST_EACH_S = 15.0

Absence = Callable[[str], Awaitable[Failed | None]]


class Verdict(Enum):
    """What became of the suspicion that an agent is down."""

    WAS_UP = auto()
    IS_BACK = auto()
    STAYED_DOWN = auto()
    STOPPED = auto()


class Outage:
    """Whoever finds an agent absent reports it here; all wait here while it is."""

    def __init__(
        self,
        absence: Absence,
        stopping: asyncio.Event,
        tell: Callable[[str], None],
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._absence = absence
        self._stopping = stopping
        self._tell = tell
        self._deadline_s = deadline_s
        self._watch: asyncio.Task[Verdict] | None = None
        self._watched: str | None = None
        self.agent: str | None = None
        self.paused_s = 0.0

    async def over(self) -> None:
        """Return when nothing is suspected of being down; at once in good times."""
        while (watch := self._running()) and not self._stopping.is_set():
            await asyncio.shield(watch)

    async def looked_into(self, agent: str) -> Verdict:
        """Look at the agent's health, together with everybody else who asks meanwhile; wait until it is back.

        While another agent is looked after, that one is waited for first.
        """
        while (watch := self._running()) and self._watched != agent:
            await asyncio.shield(watch)
        if watch is None:
            watch = self._watch = asyncio.create_task(self._until_back(agent))
            self._watched = agent
        return await asyncio.shield(watch)

    def _running(self) -> asyncio.Task[Verdict] | None:
        """To wait for one that has ended would not let anybody else run."""
        return None if self._watch is None or self._watch.done() else self._watch

    def close(self) -> None:
        """Look no more."""
        if self._watch is not None:
            self._watch.cancel()

    async def _until_back(self, agent: str) -> Verdict:
        failed = await self._absence(agent)
        if failed is None:
            return Verdict.WAS_UP
        self.agent, began = agent, time.monotonic()
        self._tell(f"Paused: {agent} cannot answer ({failed.message}); waiting up to {_span(self._deadline_s)} for it.")
        try:
            return await self._look_until_back(agent, failed, began)
        finally:
            self.agent = None
            self.paused_s += time.monotonic() - began

    async def _look_until_back(self, agent: str, failed: Failed, began: float) -> Verdict:
        deadline, pause = began + self._deadline_s, LOOK_FIRST_S
        while (left := deadline - time.monotonic()) > 0:
            if await stopped_within(self._stopping, min(left, max(pause, failed.retry_after_s), LOOK_AT_LEAST_EACH_S)):
                return Verdict.STOPPED
            still = await self._absence(agent)
            if still is None:
                self._tell(f"Going on: {agent} answers again after {_span(time.monotonic() - began)}.")
                return Verdict.IS_BACK
            failed, pause = still, pause * 2
        self._tell(f"{agent} did not come back within {_span(self._deadline_s)} ({failed.message}).")
        return Verdict.STAYED_DOWN


async def stopped_within(stopping: asyncio.Event, seconds: float) -> bool:
    """Sleep, but not longer than until the collection is being stopped; whether it is."""
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return False
    return True


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
