"""A lease that one run at a time has on a whole cluster, for what must not be done by two at once.

It is a named Ray actor, not detached: a name is given once, and goes with the process that took it. A holder that
keeps it past its deadline loses it to the next that asks. What is done under a lease is left to others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from local_vllm.engine.spec import NAMESPACE
from local_vllm.errors import RunError
from local_vllm.runs.threads import in_thread

# What is waited for, and whether the waiting is over.
Tell = Callable[[str, bool], None]

WAIT_DEADLINE_S = 1800.0
ANSWER_DEADLINE_S = 10.0
LOOK_AGAIN_S = 0.3
# The process behind a new lease takes a second to start, and is not waited for.
SURE_S = 5.0


class LeaseHolder:
    """The actor behind a lease: says whose it is, and for how long."""

    def __init__(self, holder: str, hold_s: float) -> None:
        self._holder = holder
        self._end = time.monotonic() + hold_s

    def state(self) -> tuple[str, float]:
        """Who holds the lease, and the seconds until it may be taken away."""
        return self._holder, self._end - time.monotonic()


class Lease:
    """A lease that this process has taken. `sure_s`: for how long nobody can have taken it away."""

    def __init__(self, name: str, actor: ActorHandle, sure_s: float) -> None:
        self._name = name
        self._actor = actor
        self._sure_until = time.monotonic() + sure_s

    async def check(self) -> None:
        """Raise RunError when the lease is lost: another run may be at work."""
        if time.monotonic() < self._sure_until:
            return
        with contextlib.suppress(TimeoutError):
            try:
                await asyncio.wait_for(_state(self._actor), ANSWER_DEADLINE_S)
            except ray.exceptions.RayError as error:
                raise RunError(f"the cluster's {self._name} lease was lost: it was held past its deadline") from error


@asynccontextmanager
async def lease(name: str, holder: str, *, hold_s: float, tell: Tell) -> AsyncIterator[Lease]:
    """Hold the cluster's lease of that name; needs a connected driver.

    Args:
        holder: how others are told of this run.
        hold_s: after so long another run may take it away.
        tell: called with whom the run waits for, and at last that it waits no more.

    Raises:
        RunError: others held it for half an hour.
    """
    actor = await _acquired(name, holder, hold_s, tell)
    try:
        yield Lease(name, actor, min(SURE_S, hold_s))
    finally:
        await in_thread(lambda: _killed(actor))


async def _acquired(name: str, holder: str, hold_s: float, tell: Tell) -> ActorHandle:
    deadline, other = time.monotonic() + WAIT_DEADLINE_S, None
    while time.monotonic() < deadline:
        with contextlib.suppress(ValueError):  # the name is taken
            actor = await in_thread(lambda: _taken(name, holder, hold_s))
            if other is not None:
                tell(f"it is this run's turn to {name}", True)
            return actor
        if seen := await _seen_holder(name):
            other = seen
            tell(f"waiting for {other} to {name}", False)
        await asyncio.sleep(LOOK_AGAIN_S)
    raise RunError(f"the cluster's {name} lease was not free within {WAIT_DEADLINE_S:.0f} s; {other or 'another run'} holds it")


def _taken(name: str, holder: str, hold_s: float) -> ActorHandle:
    here = ray.get_runtime_context().get_node_id()
    options = {
        "name": _actor_name(name),
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }
    return ray.remote(LeaseHolder).options(**options).remote(holder, hold_s)


async def _seen_holder(name: str) -> str | None:
    """Who holds the lease; taken away when it is held past its deadline."""
    try:
        actor = await in_thread(lambda: ray.get_actor(_actor_name(name), NAMESPACE))
        holder, left_s = await asyncio.wait_for(_state(actor), ANSWER_DEADLINE_S)
    except (ValueError, TimeoutError, ray.exceptions.RayError):
        return None
    if left_s <= 0:
        await in_thread(lambda: _killed(actor))
    return holder


async def _state(actor: ActorHandle) -> tuple[str, float]:
    return await actor.state.remote()


def _killed(actor: ActorHandle) -> None:
    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        ray.kill(actor)


def _actor_name(name: str) -> str:
    return f"lease:{name}"
