"""One `ng_run` from start to end: cluster, plan, engines, Serve applications, and all of it undone in reverse.

Everything acquired here is a context manager; stopping is cancelling the task that runs `serve_run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
from rich.console import Console

from local_vllm.cluster import machine
from local_vllm.config.schema import RunConfig
from local_vllm.errors import ClusterError, EngineStartError
from local_vllm.runs import record as records
from local_vllm.runs.clusters import RunCluster, run_cluster
from local_vllm.runs.engine_specs import engine_specs, topologies
from local_vllm.runs.janitor import janitor
from local_vllm.runs.preflight import check_machine, joined_address
from local_vllm.runs.progress import Progress
from local_vllm.runs.record import RunRecord, keep_serve_logs, run_record
from local_vllm.runs.signals import StopSignals
from local_vllm.runs.table import servers_table
from local_vllm.runs.threads import in_thread

SERVE_DEADLINE_S = 300.0
DRAIN_DEADLINE_S = 300.0
SAY_AGAIN_S = 5.0
LOOK_AGAIN_S = 0.1


class Run:
    """What the parts of one run share."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.config = config
        self.console = console
        self.progress = Progress(console)
        self.cluster: RunCluster | None = None
        self.record: RunRecord | None = None
        self._unwinding = False
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
        self.console.print(servers_table(self.config, engines, self._url()))
        self.console.print(f"Logs: {self.record.logs}    Stop: Ctrl-C", soft_wrap=True)
        try:
            await self._until_all_engines_ended(engines)
        except asyncio.CancelledError:
            await self._drain(engines)
            raise

    async def _bring_up(self, stack: AsyncExitStack) -> list:
        self.progress.step("Ray", "joining" if joined_address(self.config) else "starting")
        self.cluster = await stack.enter_async_context(run_cluster(self.config, self.record))
        self.signals.install()
        self.progress.step("Ray", f"up at {self.cluster.address}", done=True)
        deployment = self._deployment()
        self._note(deployment.application_names)
        engines = await stack.enter_async_context(self._engines())
        await stack.enter_async_context(self._applications(deployment))
        await self._until_ready(engines)
        return engines

    @asynccontextmanager
    async def _engines(self) -> AsyncIterator[list]:
        from local_vllm.cluster.nodes import read_cluster
        from local_vllm.engine.owned import owned_engines
        from local_vllm.plan.placement import plan_placements

        placements = plan_placements(await in_thread(read_cluster), topologies(self.config))
        specs = engine_specs(self.config, placements, self.record.run_id, Path(self.record.logs))
        async with owned_engines(specs) as engines:
            followers = [asyncio.create_task(engine.follow(self.progress.engine)) for engine in engines]
            try:
                yield engines
            finally:
                for follower in followers:
                    follower.cancel()

    def _deployment(self):
        from local_vllm.serving.deploy import Deployment

        return Deployment(self.config.servers)

    @asynccontextmanager
    async def _applications(self, deployment) -> AsyncIterator[None]:
        from local_vllm.runs.serve_start import is_serve_running, remove_applications

        names = deployment.application_names
        if self.cluster.guard is not None:
            await self._start_serve(names)
            await self._deploy(deployment)
            yield
            return
        ours, claimed = not is_serve_running(), False
        watching = janitor(self.cluster.address, names, shut_down=ours)
        try:
            await self._start_serve(names)
            claimed = True
            await self._deploy(deployment)
            yield
        finally:
            if claimed or ours:
                await in_thread(lambda: remove_applications(names, shut_down=ours))
            watching.dismiss()

    async def _start_serve(self, names: Sequence[str]) -> None:
        from local_vllm.runs.serve_start import start_serve

        joined = self.cluster.guard is None
        self.progress.step("Ray Serve", "starting")
        await in_thread(lambda: start_serve(self.config.settings, names, joined, Path(self.record.volatile)))

    async def _deploy(self, deployment) -> None:
        from ray import serve

        await in_thread(lambda: serve.run_many(deployment.targets(), wait_for_applications_running=False))

    async def _until_ready(self, engines: Sequence) -> None:
        from local_vllm.engine.owned import first_failure
        from local_vllm.engine.spec import EngineState

        serve_ready = asyncio.create_task(self._until_serve_answers())
        all_ready: asyncio.Task[None] | None = None
        try:
            while not (serve_ready.done() and all(e.status.state is EngineState.HEALTHY for e in engines)):
                if failure := first_failure(engines):
                    raise failure
                if serve_ready.done():
                    serve_ready.result()
                await asyncio.sleep(LOOK_AGAIN_S)
            serve_ready.result()
            all_ready = asyncio.create_task(self._until_health_is(200))
            while not all_ready.done():
                if failure := first_failure(engines):
                    raise failure
                await asyncio.sleep(LOOK_AGAIN_S)
            all_ready.result()
        finally:
            serve_ready.cancel()
            if all_ready is not None:
                all_ready.cancel()

    async def _until_serve_answers(self) -> None:
        """Every application runs, and the gateway answers; 503 is an answer while the engines start."""
        from local_vllm.serving.deploy import not_running

        deadline = time.monotonic() + SERVE_DEADLINE_S
        try:
            while waiting := await in_thread(lambda: not_running(self.record.applications)):
                if time.monotonic() > deadline:
                    raise ClusterError(f"Ray Serve did not bring up {waiting} within {SERVE_DEADLINE_S:.0f} s")
                await asyncio.sleep(0.2)
        except ClusterError:
            keep_serve_logs(self.record)
            raise
        await self._until_health_is(200, 503)
        self.progress.step("Ray Serve", f"answers at {self._url()}", done=True)

    async def _until_health_is(self, *statuses: int) -> None:
        deadline = time.monotonic() + SERVE_DEADLINE_S
        seen = "no answer"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), trust_env=False) as session:
            while time.monotonic() < deadline:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{self._url()}/health") as answer:
                        seen = f"status {answer.status}: {(await answer.text())[:300]}"
                        if answer.status in statuses and answer.content_type == "application/json":
                            return
                await asyncio.sleep(0.1)
        raise ClusterError(f"{self._url()}/health did not answer with {statuses} in time; it said: {seen}")

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

    def _note(self, applications: Sequence[str]) -> None:
        self.record = replace(
            self.record,
            url=self._url(),
            ray_address=self.cluster.address,
            private_cluster=self.cluster.guard is not None,
            applications=tuple(applications),
        )
        records.write(self.record)

    def _url(self) -> str:
        settings = self.config.settings
        host = machine.reachable_host(settings.http_host)
        return f"http://{host}:{settings.http_port}"

    def _stop(self) -> None:
        if self._unwinding:
            self.console.print("Already stopping; once more stops at once.")
        else:
            self._task.cancel()

    def _stop_at_once(self) -> None:
        """The private cluster's guard ends every process; nothing else of ours outlives this one."""
        # Before the cluster is up its guard ends with this process, and the next run sweeps up after it.
        if self.cluster is not None and self.cluster.guard is not None:
            self.cluster.guard.close(at_once=True)
            records.forget(self.record)
        self.console.print("Stopped at once.")
        os._exit(0)
