"""The engines of a run, as the run's own process holds them: created, watched, created anew, ended. In which order
they are launched, and where they come to lie, is launching.py's; when one is started again is left to the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from local_vllm.engine.actor import EngineHost
from local_vllm.engine.spec import NAMESPACE, EngineSpec, EngineState, EngineStatus, actor_name
from local_vllm.errors import EngineStartError, RunError

STOP_DEADLINE_S = 25.0
# What a lost engine leaves is ended node by node, its guard first.
ENDED_WITHIN_S = 30.0
LOOK_AGAIN_S = 0.5
NAME_FREE_WITHIN_S = 30.0
# Replicas and the run itself each keep one call open to learn of changes.
CONCURRENT_CALLS = 1000


class OwnedEngine:
    """One engine of this run. The actor behind it is not detached: it cannot outlive this process.

    Attributes:
        is_placed: its GPUs are those of the plan.
        healthy_s: for how long this launch was healthy, once it is not any more.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.is_placed = False
        self.healthy_s = 0.0
        self._healthy_since: float | None = None
        self._was_healthy = False
        try:
            self.actor = _new_actor(spec)
        except ValueError as error:
            raise RunError(
                f"the name {spec.server} is held by another run on this cluster; rename the server, or stop that run"
            ) from error
        self.status = EngineStatus(
            version=0, server=spec.server, model=spec.served_name, state=EngineState.STARTING, detail="scheduling"
        )

    async def renew(self, spec: EngineSpec, *, anywhere: bool = False) -> None:
        """Put a new actor in the place of the old one, for `spec`; on its node, or `anywhere` if that is lost.

        Raises RunError when the name does not come free.
        """
        await asyncio.to_thread(self._kill)
        self.spec = spec
        self.is_placed = False
        self.healthy_s = 0.0
        deadline = time.monotonic() + NAME_FREE_WITHIN_S
        while True:
            try:
                self.actor = await asyncio.to_thread(_new_actor, spec, anywhere)
            except ValueError as error:
                if time.monotonic() > deadline:
                    late = f"the name {spec.server} did not come free within {NAME_FREE_WITHIN_S:.0f} s"
                    raise RunError(late) from error
                await asyncio.sleep(LOOK_AGAIN_S)
            else:
                break
        self.status = self._told(EngineState.RESTARTING, "scheduling", version=0)

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
        """Call `tell` with every change; returns the last status of this launch, the engine being over or lost."""
        while not (self.status.state.is_over or self.status.state.is_lost):
            try:
                seen = await self.actor.watch.remote(self.status.version)
            except ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            except ray.exceptions.RayError as error:
                seen = self.dead(f"the process that hosts the engine is gone ({type(error).__name__})")
            if seen.version != self.status.version:
                self._note(seen)
                tell(seen)
        return self.status

    def _note(self, seen: EngineStatus) -> None:
        if seen.state is EngineState.HEALTHY:
            self._was_healthy = True
            self._healthy_since = self._healthy_since or time.monotonic()
        elif self._healthy_since is not None:
            self.healthy_s = time.monotonic() - self._healthy_since
            self._healthy_since = None
        self.status = seen

    def dead(self, why: str) -> EngineStatus:
        """The status of an engine that cannot speak for itself any more: lost, if it was well once."""
        state = EngineState.LOST if self._was_healthy else EngineState.FAILED
        return self._told(state, why, version=self.status.version + 1)

    def lost(self, why: str) -> EngineStatus:
        """The status of an engine that could not be started again: what it was before counts no more."""
        self.healthy_s = 0.0
        self.status = self._told(EngineState.LOST, why, version=self.status.version + 1)
        return self.status

    async def ended(self) -> None:
        """Return when nothing is left of a launch that was lost; what does not end in time goes with its actor."""
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            await asyncio.wait_for(_ask(self.actor.ended), ENDED_WITHIN_S)

    async def restarting(self, restarts: int, detail: str) -> EngineStatus:
        """Let those who ask hear that the engine will be started again; gives the status that says so."""
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            await asyncio.wait_for(_ask(self.actor.restarting, restarts, detail), 3)
        status = self._told(EngineState.RESTARTING, detail, version=self.status.version + 1)
        self.status = replace(status, restarts=restarts)
        return self.status

    async def give_up(self, why: str) -> None:
        """The engine has failed for good. An actor, if need be another, tells so for as long as the run lasts."""
        try:
            await asyncio.wait_for(_ask(self.actor.give_up, why), STOP_DEADLINE_S)
        except (ray.exceptions.RayError, TimeoutError):
            with contextlib.suppress(ray.exceptions.RayError, RunError, TimeoutError):
                await self.renew(self.spec, anywhere=True)
                await asyncio.wait_for(_ask(self.actor.give_up, why), STOP_DEADLINE_S)
        self.status = self._told(EngineState.FAILED, why, version=self.status.version + 1)

    def _told(self, state: EngineState, detail: str, *, version: int) -> EngineStatus:
        return EngineStatus(
            version=version,
            server=self.spec.server,
            model=self.spec.served_name,
            state=state,
            detail=detail,
            node_address=self.spec.placement.master_address,
            log_path=str(self.spec.log_path),
            restarts=self.spec.restarts,
            max_restarts=self.spec.max_restarts,
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
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self.actor)


def _new_actor(spec: EngineSpec, anywhere: bool = False) -> ActorHandle:
    options = {
        "name": actor_name(spec.server),
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "max_concurrency": CONCURRENT_CALLS,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(spec.placement.master_node_id, soft=anywhere),
    }
    return ray.remote(EngineHost).options(**options).remote(spec)


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
