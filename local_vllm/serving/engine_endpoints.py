"""The endpoint of an engine of ours: asks the engine's Ray actor, and hears of every change as it happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import ray

from local_vllm.engine.spec import NAMESPACE, EngineState, EngineStatus, actor_name
from local_vllm.serving.endpoints import Endpoint, NotReady, Ready

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5


class EngineEndpoints:
    """The endpoint source of `LocalVLLMModel` and of proxies: `server` names the engine's model server."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._state: Ready | NotReady = NotReady("starting", f"{server}: the engine is being scheduled")
        self._watcher: asyncio.Task[None] | None = None

    def current(self) -> Ready | NotReady:
        return self._state

    async def start(self) -> None:
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher

    async def _watch(self) -> None:
        while True:
            try:
                await self._follow(ray.get_actor(actor_name(self._server), NAMESPACE))
            except ValueError:  # no actor has that name (yet, or any more)
                pass
            except Exception as error:  # noqa: BLE001 (whatever it is: this task has to go on)
                logger.warning("%s: its engine is gone: %s", self._server, type(error).__name__)
                self._state = NotReady("down", f"{self._server}: the engine is gone")
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _follow(self, actor: ray.actor.ActorHandle) -> None:
        version = 0
        while True:
            status = await actor.watch.remote(version)
            version = status.version
            self._state = endpoint_state(status)


def endpoint_state(status: EngineStatus) -> Ready | NotReady:
    """What an engine's status means to requests."""
    if status.state is EngineState.HEALTHY:
        return Ready((Endpoint(status.base_url, status.api_key, status.model, status.ranks),))
    message = f"{status.server}: the engine is {status.state}"
    if status.state is EngineState.STARTING:
        return NotReady("starting", f"{message}: {status.detail}")
    if status.state is EngineState.FAILED:
        first_line = status.detail.partition("\n")[0]
        return NotReady("failed", f"{message}: {first_line}", retry_after_s=None)
    return NotReady(str(status.state), message)
