"""The Ray actor that hosts one launch of an engine on the node of data-parallel rank 0, and tells how it is.

`vllm serve` itself is held by vllm_serve.py. What the state means to requests is left to serving/, and starting an
engine again that was lost, by another such actor, to the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from dataclasses import replace

from local_vllm.engine.spec import Download, EngineSpec, EngineState, EngineStatus
from local_vllm.engine.vllm_serve import VLLMServe
from local_vllm.engine.weights_on_nodes import provide_weights
from local_vllm.errors import EngineLost, EngineStartError


class EngineHost:
    """One engine, from launch to end. Its methods are called through Ray; none of them blocks the event loop."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._begun = time.monotonic()
        self._changed = asyncio.Condition()
        self._serve: VLLMServe | None = None
        self._coming_up = EngineState.RESTARTING if spec.restarts else EngineState.STARTING
        self._status = EngineStatus(
            version=1,
            server=spec.server,
            model=spec.served_name,
            state=self._coming_up,
            detail="starting",
            ranks=spec.placement.topology.data_parallel_size,
            node_address=spec.placement.master_address,
            log_path=str(spec.log_path),
            restarts=spec.restarts,
            max_restarts=spec.max_restarts,
        )
        self._site_weights = ""
        self._life: asyncio.Task[None] | None = None

    async def prepare(self) -> bool:
        """Have the model's files where they are needed; False when that has failed."""
        self._life = asyncio.create_task(self._telling(self._provide_weights()))
        await asyncio.wait([self._life])
        return self._status.state.is_coming_up

    async def launch(self) -> None:
        """Start `vllm serve`; returns at once."""
        self._begun = time.monotonic()
        self._life = asyncio.create_task(self._telling(self._live()))

    async def ended(self) -> None:
        """Return when what was prepared or launched has ended, and nothing is left of its processes."""
        if self._life is not None:
            await asyncio.wait([self._life])

    async def status(self) -> EngineStatus:
        """The engine as it is now."""
        return replace(self._status, since_s=time.monotonic() - self._begun)

    async def watch(self, seen_version: int, wait_s: float = 30.0) -> EngineStatus:
        """The engine as soon as its status is newer than `seen_version`, or after `wait_s` as it is."""
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._status.version > seen_version), timeout=wait_s
                )
        return await self.status()

    async def requests_in_flight(self) -> int:
        """Requests that vLLM runs or holds in its queue now; 0 when it does not answer."""
        return await self._serve.requests_in_flight() if self._serve is not None else 0

    async def drain(self) -> None:
        """Take no new requests: every replica that watches answers 503 from now on."""
        if not self._status.state.is_over:
            await self._set(EngineState.STOPPING, "the run is stopping")

    async def stop(self) -> None:
        """End the engine and everything below it."""
        await self._cancel_life()
        await self._end(EngineState.STOPPED, "stopped")

    async def restarting(self, restarts: int, detail: str) -> None:
        """Tell that another actor will start the engine again: until it has taken over, this one is asked."""
        await self._set(EngineState.RESTARTING, detail, restarts=restarts)

    async def fail(self, why: str) -> None:
        """The same, for a reason that lies outside: the start has gone wrong."""
        await self._cancel_life()
        await self._end(self._end_of_start, why)

    async def give_up(self, why: str) -> None:
        """The same, for good: the engine is not started again."""
        await self._cancel_life()
        await self._end(EngineState.FAILED, why)

    async def _cancel_life(self) -> None:
        if self._life is not None:
            self._life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._life

    async def _telling(self, life: Awaitable[None]) -> None:
        """Whatever ends `life` becomes the engine's status."""
        try:
            await life
        except EngineLost as error:
            await self._lose(EngineState.STALLED if error.stalled else EngineState.LOST, str(error))
        except EngineStartError as error:
            await self._lose(self._end_of_start, str(error))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, the engine has ended and must say so)
            was_well = self._status.state is EngineState.HEALTHY
            state = EngineState.LOST if was_well else self._end_of_start
            await self._lose(state, f"{type(error).__name__}: {error}")

    @property
    def _end_of_start(self) -> EngineState:
        """A first start that goes wrong would go wrong again; an engine that was well before is worth a try."""
        return EngineState.LOST if self.spec.restarts else EngineState.FAILED

    async def _provide_weights(self) -> None:
        self._site_weights, self.spec = await provide_weights(self.spec, self._tell)

    async def _live(self) -> None:
        self._serve = VLLMServe(self.spec, self._site_weights, self._tell)
        await self._serve.start()
        await self._set(
            EngineState.HEALTHY, "", base_url=f"{self._serve.root_url}/v1", api_key=self.spec.api_key
        )
        await self._serve.watch_over()

    async def _lose(self, state: EngineState, why: str) -> None:
        """What was well is told of first of all: whoever waits for the engine waits in vain."""
        if not state.is_lost:
            return await self._end(state, why)
        await self._set(state, why, base_url="")
        await self._end_processes(at_once=True)

    async def _end(self, state: EngineState, detail: str) -> None:
        await self._end_processes(at_once=False)
        await self._set(state, detail)

    async def _end_processes(self, *, at_once: bool) -> None:
        if self._serve is not None:
            await self._serve.end(at_once=at_once)

    async def _tell(self, detail: str, download: Download | None = None) -> None:
        if (detail, download) != (self._status.detail, self._status.download):
            await self._set(self._coming_up, detail, download)

    async def _set(self, state: EngineState, detail: str, download: Download | None = None, **more: object) -> None:
        async with self._changed:
            version = self._status.version + 1
            self._status = replace(
                self._status, version=version, state=state, detail=detail, download=download, **more
            )
            self._changed.notify_all()
