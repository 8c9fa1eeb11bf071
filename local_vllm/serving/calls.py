"""The calls on their way to engines: each ends at its deadline, and all to one engine as soon as that is found dead.

Who finds an engine dead is left to the endpoint sources, what travels in a call to `client`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TypeVar

from local_vllm.errors import LocalVLLMError
from local_vllm.serving.endpoints import Endpoint

T = TypeVar("T")

# Whose call it is, for what is logged of it.
asking_session: ContextVar[str] = ContextVar("asking_session", default="")

# A connection that breaks is often the first that is seen of a dead engine: the reason comes a moment later.
VERDICT_WITHIN_S = 0.8


class Call:
    """One call. Whatever it waits for, it waits for in `until`."""

    __slots__ = ("endpoint", "error", "_calls", "_task", "_due", "_timer", "_late", "_ended")

    def __init__(self, calls: Calls, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.error: LocalVLLMError | None = None
        self._calls = calls
        self._task: asyncio.Task[object] | None = None
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._late: LocalVLLMError | None = None
        self._ended: asyncio.Event | None = None

    async def until(self, awaited: Awaitable[T]) -> T:
        """The result of `awaited`. Raises the call's error as soon as it has one."""
        if self.error is not None:
            _drop(awaited)
            raise self.error
        self._task = asyncio.current_task()
        try:
            return await awaited
        except asyncio.CancelledError:
            # Somebody else may have cancelled the task as well: the client that went away.
            if self.error is None or self._task.uncancel() > 0:  # type: ignore[union-attr]
                raise
            raise self.error from None
        finally:
            self._task = None

    def expect(self, within_s: float, late: LocalVLLMError) -> None:
        """What comes next has to come so soon; otherwise `late` is the call's error."""
        loop = asyncio.get_running_loop()
        self._due, self._late = loop.time() + within_s, late
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(self._due, self._look_at_clock)

    def heard(self, within_s: float) -> None:
        """Something came; the next has so much time again. Cheap: the timer is left as it is."""
        self._due = asyncio.get_running_loop().time() + within_s

    def _look_at_clock(self) -> None:
        loop = asyncio.get_running_loop()
        # A client that is slow to take what came is not the engine's delay.
        if self._task is None:
            self._timer = loop.call_later(1.0, self._look_at_clock)
        elif loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._look_at_clock)
        else:
            self.end(self._late)  # type: ignore[arg-type]

    def end(self, error: LocalVLLMError) -> None:
        """Whoever waits in `until`, or comes to it, gets this error."""
        if self.error is None:
            self.error = error
            if self._task is not None:
                self._task.cancel()
            if self._ended is not None:
                self._ended.set()

    async def verdict(self) -> LocalVLLMError | None:
        """Why the engine is gone, if that comes out within a moment; None also where nobody looks after it."""
        if self.error is None and self._calls.are_watched:
            self._ended = asyncio.Event()
            try:
                async with asyncio.timeout(VERDICT_WITHIN_S):
                    await self._ended.wait()
            except TimeoutError:
                pass
        return self.error

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._calls.forget(self)


class Calls:
    """Those to the engines of one source. `are_watched`: somebody tells when an engine has died."""

    def __init__(self, *, are_watched: bool = False) -> None:
        self.are_watched = are_watched
        self._open: set[Call] = set()

    def begin(self, endpoint: Endpoint) -> Call:
        call = Call(self, endpoint)
        self._open.add(call)
        return call

    def forget(self, call: Call) -> None:
        self._open.discard(call)

    def end(self, endpoint: Endpoint, error: LocalVLLMError) -> None:
        """The engine there is dead."""
        for call in [call for call in self._open if call.endpoint == endpoint]:
            call.end(error)


def _drop(awaited: Awaitable[object]) -> None:
    """Nobody will wait for it."""
    if asyncio.iscoroutine(awaited):
        awaited.close()
