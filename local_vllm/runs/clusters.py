"""The cluster of a run: a private one that is started and ended, or one that somebody else runs and we join."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from local_vllm.cluster import machine
from local_vllm.cluster.private import private_cluster
from local_vllm.config.schema import RunConfig
from local_vllm.engine.spec import NAMESPACE
from local_vllm.errors import ClusterError
from local_vllm.processes.guarded import Guarded
from local_vllm.runs.engine_specs import topologies
from local_vllm.runs.preflight import joined_address
from local_vllm.runs.record import RunRecord
from local_vllm.runs.threads import entered_in_thread, in_thread

# Logical CPUs beyond one for each data-parallel rank: vLLM's and Serve's small actors.
SPARE_CPUS = 16


@dataclass(frozen=True, slots=True)
class RunCluster:
    """A cluster with this process connected to it. `guard` holds the private one, None when joined."""

    address: str
    guard: Guarded | None


@asynccontextmanager
async def run_cluster(config: RunConfig, record: RunRecord, meanwhile: Callable[[], None]) -> AsyncIterator[RunCluster]:
    """Start or join, connect this process, and undo both on the way out.

    `meanwhile` is called in a thread while Ray starts, when the environment says what it says to Ray; not when joined.
    """
    address = joined_address(config)
    if address is not None:
        async with connected(address):
            yield RunCluster(address, None)
        return
    starting = private_cluster(
        Path(record.volatile),
        Path(record.logs) / "ray.log",
        logical_gpus=logical_gpus(config),
        cpus=logical_cpus(config),
    )
    async with entered_in_thread(starting) as private:
        os.environ.update(private.environment)
        doing = asyncio.create_task(in_thread(meanwhile))
        try:
            address = await in_thread(private.address)
        finally:
            await asyncio.wait([doing])
        doing.result()
        async with connected(address):
            yield RunCluster(address, private.guard)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[None]:
    """This process as a driver of the cluster there.

    Raises:
        ClusterError: it cannot be joined, or something that was asked of it inside the block has failed.
    """
    import ray  # not before the environment says how Ray authenticates: it looks once, when it is imported

    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(f"the Ray cluster at {address} cannot be joined: {error}") from error
    try:
        yield
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the Ray cluster at {address} has failed: {type(error).__name__}: {error}") from error
    finally:
        await in_thread(ray.shutdown)


def logical_gpus(config: RunConfig) -> int | None:
    """GPUs that a private cluster pretends to have: as many as the servers need; None where there are real ones."""
    if machine.gpu_count():
        return None
    if config.settings.logical_gpus is not None:
        return config.settings.logical_gpus
    return sum(topology.gpus for topology in topologies(config))


def logical_cpus(config: RunConfig) -> int:
    """CPUs for Ray to count: vLLM waits for ever for a data-parallel rank that finds none."""
    ranks = sum(topology.data_parallel_size for topology in topologies(config))
    return max(machine.cpu_count(), ranks + SPARE_CPUS)
