"""The runs there are and how each is doing: from the records on this machine, and from a Ray cluster.

Drawing them is left to runs/status_text.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from local_vllm.plan.placement import Placement
from local_vllm.runs import record as records
from local_vllm.runs.record import RunRecord, ServerRecord

JSON_VERSION = 1
# States of an engine that will not answer again by itself.
ENDED = ("failed", "stopped")
# States of one that is started again.
RECOVERING = ("stalled", "lost", "restarting")


class RunState(StrEnum):
    """How a run is doing.

    starting  an engine is not ready yet, or Ray Serve is not
    healthy   every engine generates
    recovering  an engine was lost and is being started again
    degraded  some engines have ended, others not
    failed    every engine has ended
    stopping  its engines take no new requests
    killed    its process is gone without having cleaned up; the next ng_run does that
    """

    STARTING = "starting"
    HEALTHY = "healthy"
    RECOVERING = "recovering"
    DEGRADED = "degraded"
    FAILED = "failed"
    STOPPING = "stopping"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """GPUs on one node that a data-parallel rank has."""

    address: str
    gpus: int


@dataclass(frozen=True, slots=True)
class PlacementStatus:
    """Where an engine's workers are: `ranks` has the nodes of each data-parallel rank, rank 0 first."""

    strategy: str
    data_parallel_size: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    ranks: tuple[tuple[SlotStatus, ...], ...]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server. What is not known yet, or is not the run's, is empty; `placement` is null then."""

    name: str
    kind: str
    implementation: str
    uses: tuple[str, ...]
    model: str
    state: str
    detail: str
    url: str
    engine_url: str
    node_address: str
    log_path: str
    restarts: int
    max_restarts: int
    placement: PlacementStatus | None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node of the run's cluster, as it was after the launch."""

    address: str
    gpus_total: int
    gpus_free: int
    accelerator: str | None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run; `begun_at` is seconds since 1970, `nodes` is empty until the engines are up."""

    run_id: str
    state: RunState
    pid: int
    host: str
    begun_at: float
    url: str
    ray_address: str
    private_cluster: bool
    logs: str
    servers: tuple[ServerStatus, ...]
    nodes: tuple[NodeStatus, ...]


@dataclass(frozen=True, slots=True)
class StatusReport:
    """What `ng_status --json` prints. `version` changes when a field changes its meaning or goes."""

    version: int
    runs: tuple[RunStatus, ...]


def local_runs() -> list[RunRecord]:
    """The records of this user on this machine, the oldest run first."""
    return sorted(records.records(), key=lambda record: (record.begun_at, record.run_id))


def runs_on_cluster(address: str) -> list[RunRecord]:
    """The living runs on a Ray cluster: joined, asked, left. Raises ClusterError where there is none."""
    from local_vllm.runs.preflight import check_cluster

    check_cluster(address)
    return asyncio.run(_ask(address))


async def _ask(address: str) -> list[RunRecord]:
    from local_vllm.runs.clusters import connected

    async with connected(address):
        from local_vllm.runs.registry import published_runs

        return published_runs()


def together(local: Sequence[RunRecord], published: Sequence[RunRecord]) -> list[RunRecord]:
    """Each run once; what it says of itself on its cluster is newer than its record."""
    by_id = {record.run_id: record for record in (*local, *published)}
    return sorted(by_id.values(), key=lambda record: (record.begun_at, record.run_id))


def run_state(record: RunRecord) -> RunState:
    """Processes of another machine cannot be seen from here: its records are taken at their word."""
    if record.host == socket.gethostname() and not record.is_alive:
        return RunState.KILLED
    states = [server.state for server in record.servers if server.placement is not None]
    over = sum(state in ENDED for state in states)
    if over:
        return RunState.FAILED if over == len(states) else RunState.DEGRADED
    if "stopping" in states:
        return RunState.STOPPING
    if any(state in RECOVERING for state in states):
        return RunState.RECOVERING
    return RunState.HEALTHY if record.url and set(states) <= {"healthy"} else RunState.STARTING


def report(runs: Sequence[RunRecord]) -> StatusReport:
    return StatusReport(JSON_VERSION, tuple(map(_run_status, runs)))


def _run_status(record: RunRecord) -> RunStatus:
    nodes = record.cluster.by_address() if record.cluster else ()
    return RunStatus(
        run_id=record.run_id,
        state=run_state(record),
        pid=record.pid,
        host=record.host,
        begun_at=record.begun_at,
        url=record.url,
        ray_address=record.ray_address,
        private_cluster=record.private_cluster,
        logs=record.logs,
        servers=tuple(map(_server_status, record.servers)),
        nodes=tuple(NodeStatus(n.address, n.gpus_total, n.gpus_free, n.accelerator) for n in nodes),
    )


def _server_status(server: ServerRecord) -> ServerStatus:
    return ServerStatus(
        name=server.name,
        kind=server.kind,
        implementation=server.implementation,
        uses=server.uses,
        model=server.model,
        state=server.state,
        detail=server.detail,
        url=server.url,
        engine_url=server.engine_url,
        node_address=server.node_address,
        log_path=server.log_path,
        restarts=server.restarts,
        max_restarts=server.max_restarts,
        placement=_placement_status(server.placement) if server.placement else None,
    )


def _placement_status(placement: Placement) -> PlacementStatus:
    topology = placement.topology
    ranks = ((SlotStatus(slot.address, slot.gpus) for slot in rank.slots) for rank in placement.ranks)
    return PlacementStatus(
        strategy=str(topology.strategy),
        data_parallel_size=topology.data_parallel_size,
        tensor_parallel_size=topology.tensor_parallel_size,
        pipeline_parallel_size=topology.pipeline_parallel_size,
        ranks=tuple(map(tuple, ranks)),
    )
