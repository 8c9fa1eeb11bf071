"""Keeps an engine up: follows it, and when it is lost has it planned and started again, elsewhere if need be.

How often that is done is decided in engine/supervise.py; how one launch goes is the engine's own affair.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

import ray

from local_vllm.cluster.groups import Reservation
from local_vllm.engine.launching import launch_engine
from local_vllm.engine.owned import OwnedEngine
from local_vllm.engine.spec import EngineStatus
from local_vllm.engine.supervise import Restarts
from local_vllm.errors import LocalVLLMError, PlacementError
from local_vllm.runs.tenancy import Replanned, Tenant

# What a dead engine had is free for Ray some time after its processes are gone.
FREE_WITHIN_S = 60.0
LOOK_AGAIN_S = 0.25

logger = logging.getLogger(__name__)

Tell = Callable[[EngineStatus], None]


class Recovery:
    """One engine of a run. `tell` hears of every change of its status."""

    def __init__(self, engine: OwnedEngine, tenant: Tenant, tell: Tell) -> None:
        self._engine = engine
        self._tenant = tenant
        self._listener = tell
        self._restarts = Restarts(engine.spec.max_restarts)
        self._launches = 0

    async def keep_up(self) -> None:
        """Return when the engine is over: ended on purpose, failed at its first start, or lost too often.

        Never raises: nobody waits for this task, and an engine that nobody keeps up is given up.
        """
        try:
            await self._keep_up()
        except Exception as error:  # noqa: BLE001 (whatever it is, the engine says so)
            logger.exception("%s is not kept up any more", self._engine.spec.server)
            await self._give_up(f"given up: {type(error).__name__}: {error}")

    async def _keep_up(self) -> None:
        status = await self._engine.follow(self._tell)
        while status.state.is_lost:
            restarts = self._restarts.after_health(self._engine.healthy_s).next()
            if restarts is None:
                count = self._restarts.count
                return await self._give_up(f"given up after {count} restarts (max_restarts): {status.detail}")
            self._restarts = restarts
            await self._announce(status.reason)
            await asyncio.sleep(restarts.delay_s())
            status = await self._start_again()

    async def _announce(self, why: str) -> None:
        self._tell(await self._engine.restarting(self._restarts.count, why))

    async def _give_up(self, why: str) -> None:
        await self._engine.give_up(why)
        self._tell(self._engine.status)

    def _tell(self, status: EngineStatus) -> None:
        """An engine is not given up because nobody could be told of it."""
        try:
            self._listener(status)
        except Exception:  # noqa: BLE001 (whoever is told has errors of its own)
            logger.exception("%s is %s, which could not be told", status.server, status.state_in_words)

    async def _start_again(self) -> EngineStatus:
        """The last status of one more launch, which may not have come about."""
        reservation = None
        try:
            await self._engine.ended()
            placement, reservation = await self._replanned()
            self._launches += 1
            spec = replace(
                self._engine.spec, placement=placement, restarts=self._restarts.count, launch=self._launches
            )
            await self._engine.renew(spec)
            return await self._launched(reservation)
        except (LocalVLLMError, ray.exceptions.RayError) as error:
            return self._engine.lost(f"it could not be started again: {error}")
        finally:
            if reservation is not None:
                reservation.close()

    async def _replanned(self) -> Replanned:
        """Where the engine goes now: where it was, as a rule, as soon as that is free."""
        deadline = time.monotonic() + FREE_WITHIN_S
        while True:
            try:
                return await self._tenant.replan(self._engine.spec.placement.topology)
            except PlacementError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _launched(self, reservation: Reservation | None) -> EngineStatus:
        following = asyncio.create_task(self._engine.follow(self._tell))
        try:
            if await self._engine.prepare():
                async with self._tenant.launching(1) as permission:
                    if reservation is not None:
                        reservation.close()
                    await launch_engine(self._engine, alone=permission is None)
            return await following
        finally:
            following.cancel()
