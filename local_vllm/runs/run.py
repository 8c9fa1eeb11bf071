"""One `ng_run` from start to end: cluster, plan, engines, Serve applications, and all of it undone in reverse.

Everything acquired here is a context manager; stopping is cancelling the task that runs `serve_run`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from local_vllm.config.schema import RunConfig
from local_vllm.engine.spec import EngineStatus
from local_vllm.errors import ClusterError, EngineStartError
from local_vllm.runs import record as records
from local_vllm.runs.clusters import RunCluster, run_cluster
from local_vllm.runs.engine_specs import engine_specs, topologies
from local_vllm.runs.preflight import check_machine, joined_address
from local_vllm.runs.progress import Progress
from local_vllm.runs.record import RunRecord, keep_serve_logs, run_record
from local_vllm.runs.server_records import server_records, server_url, with_status
from local_vllm.runs.signals import StopSignals
from local_vllm.runs.table import servers_table
from local_vllm.runs.threads import in_thread

if TYPE_CHECKING:
    from local_vllm.engine.owned import OwnedEngine
    from local_vllm.runs.applications import Deployed
    from local_vllm.runs.tenancy import Tenant

# What is done inside a run, once all its servers answer. Cancelling it asks it to come to its end.
Job = Callable[[RunRecord], Awaitable[None]]

DRAIN_DEADLINE_S = 300.0
SAY_AGAIN_S = 5.0


class Run:
    """What the parts of one run share."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.config = config
        self.console = console
        self.progress = Progress(console)
        self.cluster: RunCluster | None = None
        self.tenant: Tenant | None = None
        self.record: RunRecord | None = None
        self._job: Job | None = None
        self._doing: asyncio.Task[None] | None = None
        self._unwinding = False
        self._is_up = False
        self._said: dict[str, str] = {}
        self.signals = StopSignals(first=self._stop, second=self._stop_at_once)

    async def serve(self) -> None:
        """Bring everything up, serve until a signal, take everything down.

        Raises:
            LocalVLLMError: something could not be brought up, or every engine has ended; all is down again.
        """
        self._task = asyncio.current_task()
        self.signals.install()
        try:
            await self._serve()
        except asyncio.CancelledError:
            if not self.signals.count:
                raise
        if self.signals.count:
            self.console.print("Stopped; nothing is left running.")

    async def do(self, job: Job) -> None:
        """The same with the end of `job` for a signal. Signals during the job go to it, each as a cancellation.

        Raises what `serve` and the job raise. Without an exception the job may not have been begun: a signal came first.
        """
        self._job = job
        await self.serve()

    async def _serve(self) -> None:
        check_machine(self.config)
        for dead in records.sweep():
            self.console.print(f"Cleaned up after run {dead.run_id}, which was killed.")
        async with AsyncExitStack() as stack:
            self.record = stack.enter_context(run_record())
            try:
                await self._come_up_and_stay(stack)
            finally:
                self._unwinding = True

    async def _come_up_and_stay(self, stack: AsyncExitStack) -> None:
        with self.progress.shown():
            engines = await self._bring_up(stack)
        self._is_up = True
        self.console.print(servers_table(self.record))
        self.console.print(f"Logs: {self.record.logs}    Stop: Ctrl-C", soft_wrap=True)
        if self._job is not None:
            return await self._do(self._job, engines)
        try:
            await self._until_all_engines_ended(engines)
        except asyncio.CancelledError:
            await self._drain(engines)
            raise

    async def _bring_up(self, stack: AsyncExitStack) -> list[OwnedEngine]:
        self.progress.step("Ray", "joining" if joined_address(self.config) else "starting")
        self.cluster = await stack.enter_async_context(run_cluster(self.config, self.record, _load_serving))
        self.signals.install()
        self.progress.step("Ray", f"up at {self.cluster.address}", done=True)
        self.tenant = stack.enter_context(self._tenancy())
        engines = await stack.enter_async_context(self._engines())
        # The engines are on their way, which needs this loop.
        await in_thread(_load_serving)
        from local_vllm.cluster.nodes import read_cluster
        from local_vllm.runs.applications import applications
        from local_vllm.runs.readiness import until_ready

        serving = applications(self.config, self.cluster, self.tenant, self.record, self._keep_deployed)
        self.progress.step("Ray Serve", "starting")
        deployed = await stack.enter_async_context(serving)
        try:
            unreachable = await until_ready(engines, deployed, self._tell_serve_answers)
        except ClusterError:
            keep_serve_logs(self.record)
            raise
        for message in unreachable:
            self.console.print(f"Warning: {message}")
        self._keep(cluster=await in_thread(read_cluster))
        return engines

    @contextmanager
    def _tenancy(self) -> Iterator[Tenant]:
        from local_vllm.runs.tenancy import FellowTenant, SoleTenant

        alone = self.cluster.guard is not None
        tenant = SoleTenant() if alone else FellowTenant(self.record, self._tell_turn)
        try:
            yield tenant
        finally:
            tenant.close()

    def _tell_turn(self, lease: str, doing: str, over: bool) -> None:
        self.progress.step(f"turn to {lease}", doing, done=over)

    @asynccontextmanager
    async def _engines(self) -> AsyncIterator[list[OwnedEngine]]:
        from local_vllm.engine.launching import launch_engines
        from local_vllm.engine.owned import owned_engines
        from local_vllm.runs.recovery import Recovery

        names = tuple(server.name for server in self.config.servers)
        self.record = replace(
            self.record,
            ray_address=self.cluster.address,
            private_cluster=self.cluster.guard is not None,
            applications=names,
            servers=server_records(self.config, []),
        )
        async with AsyncExitStack() as stack:
            async with self.tenant.planning(self.record, topologies(self.config)) as placements:
                specs = engine_specs(self.config, placements, self.record.run_id, Path(self.record.logs))
                self._keep(servers=server_records(self.config, specs))
                # Their processes start while others are told of the plan.
                engines = await stack.enter_async_context(owned_engines(specs))
            launching = launch_engines(engines, lambda: self.tenant.launching(len(engines)))
            recoveries = [Recovery(engine, self.tenant, partial(self._on_status, engine)) for engine in engines]
            tasks = [asyncio.create_task(recovery.keep_up()) for recovery in recoveries]
            tasks.append(asyncio.create_task(launching))
            try:
                yield engines
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    def _on_status(self, engine: OwnedEngine, status: EngineStatus) -> None:
        self.progress.engine(status)
        if self._is_up and self.console.is_terminal and status.state_in_words != self._said.get(status.server):
            self._said[status.server] = status.state_in_words
            why = status.reason
            self.console.print(f"{status.server}: {status.state_in_words}{f': {why}' if why else ''}", soft_wrap=True)
        self._keep(servers=tuple(with_status(server, status, engine.spec) for server in self.record.servers))

    def _keep_deployed(self, deployed: Deployed) -> None:
        self._keep(
            url=deployed.url,
            serve_url=deployed.serve_url,
            serve_is_ours=deployed.serve_is_ours,
            applications=deployed.names,
            servers=tuple(
                replace(server, url=server_url(deployed.serve_url, server)) for server in self.record.servers
            ),
        )

    def _keep(self, **changes: object) -> None:
        self.record = replace(self.record, **changes)
        self.tenant.keep(self.record)

    def _tell_serve_answers(self) -> None:
        self.progress.step("Ray Serve", f"answers at {self.record.url}", done=True)

    async def _until_all_engines_ended(self, engines: Sequence) -> None:
        """Serve until no engine is left; without engines of our own, until a signal."""
        told: set[str] = set()
        while True:
            await asyncio.sleep(0.5)
            over = [engine for engine in engines if engine.status.state.is_over]
            for engine in over:
                if engine.spec.server not in told:
                    told.add(engine.spec.server)
                    self.console.print(f"{engine.spec.server}: the engine has ended: {engine.status.detail}")
            if engines and len(over) == len(engines):
                raise EngineStartError("every engine has ended, so there is nothing left to serve")
            if self.cluster.guard is not None and self.cluster.guard.poll() is not None:
                raise ClusterError(f"Ray has ended; its output is in {self.record.logs}")

    async def _do(self, job: Job, engines: Sequence) -> None:
        """Until the job has ended; it is asked to when there is nothing left to serve it."""
        self._doing = asyncio.ensure_future(job(self.record))
        watching = asyncio.create_task(self._until_all_engines_ended(engines))
        await asyncio.wait([self._doing, watching], return_when=asyncio.FIRST_COMPLETED)
        if not self._doing.done():
            self._doing.cancel()
            await asyncio.wait([self._doing])
            watching.result()
        watching.cancel()
        self._doing.result()

    async def _drain(self, engines: Sequence) -> None:
        """Refuse new requests and wait for those in flight, saying so."""
        self.console.print("Stopping.")
        await asyncio.gather(*(engine.drain() for engine in engines))
        deadline, said_at = time.monotonic() + DRAIN_DEADLINE_S, 0.0
        while in_flight := sum(await asyncio.gather(*(engine.requests_in_flight() for engine in engines))):
            if time.monotonic() > deadline:
                self.console.print(f"Cut off after {DRAIN_DEADLINE_S:.0f} s: {in_flight} in flight.")
                return
            if time.monotonic() - said_at > SAY_AGAIN_S:
                said_at = time.monotonic()
                self.console.print(f"Waiting for requests in flight: {in_flight}. Ctrl-C again stops at once.")
            await asyncio.sleep(0.25)

    def _stop(self) -> None:
        if self._unwinding:
            self.console.print("Already stopping; once more stops at once.")
        else:
            (self._doing or self._task).cancel()

    def _stop_at_once(self) -> None:
        """The private cluster's guard ends every process; nothing else of ours outlives this one."""
        if self._doing is not None and not self._doing.done():
            self._doing.cancel()
            return
        # Before the cluster is up its guard ends with this process, and the next run sweeps up after it.
        if self.cluster is not None and self.cluster.guard is not None:
            self.cluster.guard.close(at_once=True)
            records.forget(self.record)
        self.console.print("Stopped at once.")
        os._exit(0)


def _load_serving() -> None:
    """Import what takes seconds, Ray and Serve: not before the environment is Ray's, which both read only once."""
    import local_vllm.engine.launching
    import local_vllm.runs.applications
    import local_vllm.runs.readiness
    import local_vllm.runs.recovery  # noqa: F401
