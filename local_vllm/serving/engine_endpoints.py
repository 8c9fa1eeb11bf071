"""The endpoint of an engine of ours: asks the engine's Ray actor, and hears of every change as it happens.

When the engine is lost, the calls that are on their way to it end here. How many requests wait at each of several
ranks is asked of the engine itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

import ray

from local_vllm.engine.spec import NAMESPACE, EngineState, EngineStatus, actor_name
from local_vllm.errors import EngineUnavailable
from local_vllm.serving.calls import Calls
from local_vllm.serving.endpoints import Endpoint, NotReady, Ready
from local_vllm.serving.engine_watch import EngineWatch

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.2
RETRY_AFTER_S = 5


class EngineEndpoints:
    """The endpoint source of `LocalVLLMModel` and of proxies: `server` names the engine's model server."""

    def __init__(self, server: str) -> None:
        self._server = server
        self.calls = Calls(are_watched=True)
        self._state: Ready | NotReady = NotReady("starting", f"{server}: the engine is being scheduled")
        self._changed = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._queues: EngineWatch | None = None

    def current(self) -> Ready | NotReady:
        return self._state

    def lost(self, endpoint: Endpoint) -> Ready | NotReady:
        """The actor will tell by itself."""
        return self._state

    async def settled(self, within_s: float) -> Ready | NotReady:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while isinstance(self._state, NotReady) and self._state.passes:
                    await self._changed.wait()
        return self._state

    async def start(self) -> None:
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._watch_queues(None)

    async def _watch(self) -> None:
        while True:
            try:
                await self._follow(ray.get_actor(actor_name(self._server), NAMESPACE))
            except ValueError:  # no actor has that name (yet, or any more)
                pass
            except Exception as error:  # noqa: BLE001 (whatever it is: this task has to go on)
                logger.warning("%s: its engine is gone: %s", self._server, type(error).__name__)
                await self._settle(_gone(self._server, self._state))
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _follow(self, actor: ray.actor.ActorHandle) -> None:
        version = 0
        while True:
            status = await actor.watch.remote(version)
            version = status.version
            await self._settle(endpoint_state(status))

    async def _settle(self, state: Ready | NotReady) -> None:
        before, self._state = self._state, state
        self._changed.set()
        self._changed = asyncio.Event()
        if isinstance(before, Ready):
            self._end_calls(before.endpoints[0], state)
        several = isinstance(state, Ready) and state.endpoints[0].ranks > 1
        await self._watch_queues(state.endpoints[0] if several else None)

    def _end_calls(self, endpoint: Endpoint, state: Ready | NotReady) -> None:
        """Those to an engine that is dead. One that takes no new requests goes on with those that it has."""
        if isinstance(state, Ready):
            if endpoint not in state.endpoints:
                self.calls.end(endpoint, _lost(f"{self._server}: the engine was started again"))
        elif state.state != EngineState.STOPPING:
            self.calls.end(endpoint, _lost(state.message, retry=state.retry_after_s is not None))

    async def _watch_queues(self, endpoint: Endpoint | None) -> None:
        """Only ranks can be chosen from here; with one of them there is nothing to look for."""
        if self._queues is not None and self._queues.endpoint == endpoint:
            return
        if self._queues is not None:
            await self._queues.close()
        self._queues = EngineWatch(endpoint, self._with_queues) if endpoint is not None else None
        if self._queues is not None:
            self._queues.start()

    def _with_queues(self) -> None:
        if isinstance(self._state, Ready) and self._queues is not None:
            self._state = replace(self._state, waiting=(self._queues.waiting,))


def endpoint_state(status: EngineStatus) -> Ready | NotReady:
    """What an engine's status means to requests."""
    return replace(_state(status), restarts=status.restarts)


def _state(status: EngineStatus) -> Ready | NotReady:
    if status.state is EngineState.HEALTHY:
        return Ready((Endpoint(status.base_url, status.api_key, status.model, status.ranks),))
    message = f"{status.server}: the engine is {status.state}"
    if status.state is EngineState.STARTING:
        return NotReady("starting", f"{message}: {status.detail}")
    if status.state is EngineState.FAILED:
        return NotReady("failed", f"{message}: {status.reason}", retry_after_s=None)
    if status.state.is_lost or status.state is EngineState.RESTARTING:
        message = f"{status.server}: the engine is {status.state_in_words}: {status.reason}"
        return NotReady(str(status.state), message, RETRY_AFTER_S, passes=True)
    return NotReady(str(status.state), message)


def _gone(server: str, before: Ready | NotReady) -> NotReady:
    """The engine's actor is dead. An engine that was well is started again by its run."""
    if isinstance(before, NotReady) and not before.passes:
        return replace(before, message=f"{server}: the engine is gone")
    message = f"{server}: the engine is lost: the process that hosts it is gone"
    return NotReady(str(EngineState.LOST), message, passes=True, restarts=before.restarts)


def _lost(message: str, *, retry: bool = True) -> EngineUnavailable:
    said = f"{message}; {'ask again' if retry else 'asking again does not help'}"
    return EngineUnavailable(said, retry_after_s=RETRY_AFTER_S if retry else None, code="engine_lost")
