"""The endpoints of a `VLLMModel`: engines that somebody else runs, of which those count that can be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from local_vllm.serving.endpoints import Endpoint, NotReady, Ready
from local_vllm.serving.engine_watch import LOOK_EVERY_S, EngineWatch

# The state of a server none of whose engines can be reached.
UNREACHABLE = "unavailable"


class WatchedEndpoints:
    """Until `start`, all of them are taken to be there."""

    def __init__(
        self, urls: Sequence[str], api_key: str, model: str, *, look_every_s: float = LOOK_EVERY_S
    ) -> None:
        given = tuple(Endpoint(url.rstrip("/"), api_key, model) for url in urls)
        self._watches = [EngineWatch(each, self._settle, look_every_s=look_every_s) for each in given]
        self._endpoints = given
        self._state: Ready | NotReady = Ready(given)

    def current(self) -> Ready | NotReady:
        return self._state

    def lost(self, endpoint: Endpoint) -> Ready | NotReady:
        for watch in self._watches:
            if watch.endpoint == endpoint:
                watch.lost()
        return self._state

    async def settled(self, within_s: float) -> Ready | NotReady:
        return self._state

    async def start(self) -> None:
        for watch in self._watches:
            watch.start()
        await asyncio.gather(*(watch.first_look() for watch in self._watches))

    async def close(self) -> None:
        await asyncio.gather(*(watch.close() for watch in self._watches))

    def _settle(self) -> None:
        there = [watch for watch in self._watches if watch.problem is None]
        if not there:
            self._state = NotReady(UNREACHABLE, " ".join(watch.problem or "" for watch in self._watches))
            return
        endpoints = tuple(watch.endpoint for watch in there)
        if endpoints != self._endpoints:
            self._endpoints = endpoints
        waiting = tuple(watch.waiting for watch in there)
        self._state = Ready(self._endpoints, waiting, down=len(self._watches) - len(there))
