"""The engines of a run, as the run's own process holds them: created, watched, ended. In which order they are
launched, and where they come to lie, is launching.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from local_vllm.engine.actor import EngineHost
from local_vllm.engine.spec import NAMESPACE, EngineSpec, EngineState, EngineStatus, actor_name
from local_vllm.errors import EngineStartError, RunError

STOP_DEADLINE_S = 25.0
LOOK_AGAIN_S = 0.5
# Replicas and the run itself each keep one call open to learn of changes.
CONCURRENT_CALLS = 1000


class OwnedEngine:
    """One engine of this run. The actor behind it is not detached: it cannot outlive this process.

    `is_placed` once its GPUs are those of the plan.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.is_placed = False
        options = {
            "name": actor_name(spec.server),
            "namespace": NAMESPACE,
            "num_cpus": 0,
            "max_concurrency": CONCURRENT_CALLS,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(spec.placement.master_node_id, soft=False),
        }
        try:
            self.actor = ray.remote(EngineHost).options(**options).remote(spec)
        except ValueError as error:
            raise RunError(
                f"the name {spec.server} is held by another run on this cluster; rename the server, or stop that run"
            ) from error
        self.status = EngineStatus(
            version=0, server=spec.server, model=spec.served_name, state=EngineState.STARTING, detail="scheduling"
        )

    async def prepare(self) -> bool:
        """Have the model's files where they are needed; False when that failed, as the status tells."""
        return await self.actor.prepare.remote()

    async def launch(self) -> None:
        """Start `vllm serve`; returns at once."""
        await self.actor.launch.remote()

    async def fail(self, why: str) -> None:
        """End the engine, failed for that reason."""
        try:
            await asyncio.wait_for(_ask(self.actor.fail, why), STOP_DEADLINE_S)
        except (ray.exceptions.RayError, TimeoutError):
            self.status = self.dead(why)

    async def follow(self, tell: Callable[[EngineStatus], None]) -> EngineStatus:
        """Call `tell` with every change; returns the last status when the engine's life is over."""
        while not self.status.state.is_over:
            try:
                seen = await self.actor.watch.remote(self.status.version)
            except ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            except ray.exceptions.RayError as error:
                seen = self.dead(f"the process that hosts the engine is gone ({type(error).__name__})")
            if seen.version != self.status.version:
                self.status = seen
                tell(seen)
        return self.status

    def dead(self, why: str) -> EngineStatus:
        """The status of an engine that cannot speak for itself any more."""
        return EngineStatus(
            version=self.status.version + 1,
            server=self.spec.server,
            model=self.spec.served_name,
            state=EngineState.FAILED,
            detail=why,
            log_path=str(self.spec.log_path),
        )

    async def requests_in_flight(self) -> int:
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            return await asyncio.wait_for(_ask(self.actor.requests_in_flight), 3)
        return 0

    async def drain(self) -> None:
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            await asyncio.wait_for(_ask(self.actor.drain), 3)

    async def stop(self) -> None:
        """End the engine; whatever does not end in time goes with its actor."""
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            await asyncio.wait_for(_ask(self.actor.stop), STOP_DEADLINE_S)
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self.actor)


async def _ask(method, *arguments):
    return await method.remote(*arguments)


@asynccontextmanager
async def owned_engines(specs: Sequence[EngineSpec]) -> AsyncIterator[list[OwnedEngine]]:
    """Create the engines' actors; all engines are ended on the way out."""
    engines: list[OwnedEngine] = []
    try:
        for spec in specs:
            engines.append(OwnedEngine(spec))
        yield engines
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines), return_exceptions=True)


def first_failure(engines: Sequence[OwnedEngine]) -> EngineStartError | None:
    """The error of the first engine that has failed, ready to be raised."""
    for engine in engines:
        if engine.status.state is EngineState.FAILED:
            return EngineStartError(f"{engine.spec.server}: {engine.status.detail}")
    return None
