"""How a run lives on its cluster: alone on a private one, beside other runs on one that it joined.

Both tenants plan the engines, say when they may be launched, keep the run's record, and say how Serve is shared.
On a shared cluster planning and launching happen under a lease, and what was planned is reserved until it is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from local_vllm.cluster.groups import Reservation
from local_vllm.cluster.nodes import read_cluster
from local_vllm.errors import ClusterError, RunError
from local_vllm.plan.cluster import Cluster, Holding
from local_vllm.plan.placement import Placement, plan_placements
from local_vllm.plan.topology import Topology
from local_vllm.runs import record as records
from local_vllm.runs.lease import Lease, lease
from local_vllm.runs.record import RunRecord
from local_vllm.runs.registry import Registration, published_runs
from local_vllm.runs.threads import in_thread

# The cluster's leases: what one run does at a time.
LAUNCH = "launch"
SERVE = "start or stop Serve"
PLAN_TRIES = 3
# For how long another run waits before it takes the lease away from one that hangs.
PLAN_HOLD_S = 300.0
SERVE_HOLD_S = 300.0
LAUNCH_HOLD_S = 360.0


@dataclass(frozen=True, slots=True)
class ServeShare:
    """How a run uses Serve.

    Attributes:
        url: where it listens, if another run has already said so.
        is_ours: a run of ours has started it, or is about to.
        has_root: nobody else's gateway is at `/`.
    """

    url: str | None
    is_ours: bool
    has_root: bool


Planning = AbstractAsyncContextManager[tuple[Placement, ...]]
# A new place for one engine, and what holds it until vLLM takes it.
Replanned = tuple[Placement, Reservation | None]


class Tenant(Protocol):
    """What a run asks of its place on a cluster. What it keeps while it plans, the next to plan will see."""

    def planning(self, record: RunRecord, topologies: Sequence[Topology]) -> Planning: ...

    async def replan(self, topology: Topology) -> Replanned: ...

    def launching(self, engines: int) -> AbstractAsyncContextManager[Lease | None]: ...

    def serve(self) -> AbstractAsyncContextManager[ServeShare]: ...

    def keep(self, record: RunRecord) -> None: ...

    def close(self) -> None: ...


class SoleTenant:
    """On a cluster of its own: nobody to wait for, but another launch of this run."""

    def __init__(self) -> None:
        self._launching = asyncio.Lock()

    @asynccontextmanager
    async def planning(
        self, record: RunRecord, topologies: Sequence[Topology]
    ) -> AsyncIterator[tuple[Placement, ...]]:
        yield plan_placements(await in_thread(read_cluster), topologies)

    async def replan(self, topology: Topology) -> Replanned:
        (placement,) = plan_placements(await in_thread(read_cluster), [topology])
        return placement, None

    @asynccontextmanager
    async def launching(self, engines: int) -> AsyncIterator[Lease | None]:
        async with self._launching:
            yield None

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[ServeShare]:
        yield ServeShare(None, is_ours=True, has_root=True)

    def keep(self, record: RunRecord) -> None:
        records.rewrite(record)

    def close(self) -> None:
        pass


class FellowTenant:
    """On a cluster that others use too. `tell` is called with a lease, whom the run waits for, and when that is over."""

    def __init__(self, record: RunRecord, tell: Callable[[str, str, bool], None]) -> None:
        self._run_id = record.run_id
        self._title = record.title
        self._tell = tell
        self._registration: Registration | None = None
        self._reservation: Reservation | None = None

    @asynccontextmanager
    async def planning(
        self, record: RunRecord, topologies: Sequence[Topology]
    ) -> AsyncIterator[tuple[Placement, ...]]:
        """Register the run, plan its engines and reserve their GPUs.

        Raises:
            RunError: another run has one of our servers' names.
            PlacementError: the engines do not fit on what is free.
        """
        async with self._lease(LAUNCH, PLAN_HOLD_S):
            others = await in_thread(published_runs)
            _refuse_held_names(record, others)
            self._registration = await in_thread(lambda: Registration(record))
            placements, self._reservation = await in_thread(lambda: self._reserved(topologies, others))
            yield placements
            await in_thread(self._registration.settle)

    async def replan(self, topology: Topology) -> Replanned:
        """Plan one engine anew, and reserve its GPUs. Raises PlacementError while it does not fit on what is free."""
        async with self._lease(LAUNCH, PLAN_HOLD_S):
            others = await in_thread(published_runs)
            (placement,), reservation = await in_thread(lambda: self._reserved([topology], others))
            return placement, reservation

    def _reserved(
        self, topologies: Sequence[Topology], others: Sequence[RunRecord]
    ) -> tuple[tuple[Placement, ...], Reservation]:
        for _ in range(PLAN_TRIES - 1):
            placements = plan_placements(with_holdings(read_cluster(), others), topologies)
            # What the cluster says is free lags behind what has just been taken.
            with contextlib.suppress(ClusterError):
                return placements, Reservation(placements, self._run_id)
        placements = plan_placements(with_holdings(read_cluster(), others), topologies)
        return placements, Reservation(placements, self._run_id)

    @asynccontextmanager
    async def launching(self, engines: int) -> AsyncIterator[Lease | None]:
        """The time in which vLLM may take the GPUs that were reserved."""
        async with self._lease(LAUNCH, LAUNCH_HOLD_S * engines) as held:
            await in_thread(self._give_back)
            yield held

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[ServeShare]:
        """The time in which Serve may be started or shut down, and what it is at its beginning."""
        async with self._lease(SERVE, SERVE_HOLD_S):
            yield await in_thread(self._serve_share)

    def _serve_share(self) -> ServeShare:
        # Serve takes seconds to import, in which engines can start.
        from local_vllm.runs.serve_start import applications, is_serve_running
        from local_vllm.serving.deploy import GATEWAY

        if not is_serve_running():
            return ServeShare(None, is_ours=True, has_root=True)
        others = [run for run in published_runs() if run.serve_url and run.run_id != self._run_id]
        return ServeShare(
            url=others[0].serve_url if others else None,
            is_ours=any(run.serve_is_ours for run in others),
            has_root=GATEWAY not in applications(),
        )

    def keep(self, record: RunRecord) -> None:
        records.rewrite(record)
        if self._registration is not None:
            self._registration.update(record)

    def close(self) -> None:
        self._give_back()
        if self._registration is not None:
            self._registration.close()

    def _lease(self, name: str, hold_s: float) -> AbstractAsyncContextManager[Lease]:
        return lease(name, self._title, hold_s=hold_s, tell=partial(self._tell, name))

    def _give_back(self) -> None:
        if self._reservation is not None:
            self._reservation.close()


def _refuse_held_names(record: RunRecord, others: Sequence[RunRecord]) -> None:
    for other in others:
        if held := sorted(set(record.applications) & set(other.applications)):
            raise RunError(
                f"{', '.join(held)}: served on this cluster by {other.title}; stop that run, or rename the server here"
            )


def with_holdings(cluster: Cluster, runs: Sequence[RunRecord]) -> Cluster:
    """The cluster with the runs named as holders of the GPUs that they have."""
    holdings: dict[str, list[Holding]] = defaultdict(list)
    for run in runs:
        for server in run.servers:
            if server.placement is not None:
                for node_id, gpus in server.placement.gpus_by_node.items():
                    holdings[node_id].append(Holding(f"{server.name} of {run.title}", gpus))
    return Cluster(
        tuple(replace(node, holdings=tuple(holdings.get(node.node_id, ()))) for node in cluster.nodes)
    )
