"""The Ray actor that hosts one engine on the node of data-parallel rank 0: launches it, watches it, tells of it.

It owns the guard of `vllm serve`, so the engine ends with it. What the state means to requests is left to serving/.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path

import aiohttp
import ray

from local_vllm.cluster import machine
from local_vllm.engine import command, weights
from local_vllm.engine.log import LogReader
from local_vllm.engine.spec import Download, EngineSpec, EngineState, EngineStatus
from local_vllm.engine.weights_on_nodes import provide_weights
from local_vllm.errors import EngineStartError
from local_vllm.processes.guarded import Guarded
from local_vllm.processes.listeners import listening_pids
from local_vllm.processes.tree import descendants

POLL_S = 0.25
STOP_GRACE_S = 6.0
LAUNCH_ATTEMPTS = 3
_PORT_TAKEN = "address already in use"


class EngineHost:
    """One engine, from launch to end. Its methods are called through Ray; none of them blocks the event loop."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._begun = time.monotonic()
        self._changed = asyncio.Condition()
        self._guard: Guarded | None = None
        self._log = LogReader(spec.log_path)
        self._status = EngineStatus(
            version=1,
            server=spec.server,
            model=spec.served_name,
            state=EngineState.STARTING,
            detail="starting",
            ranks=spec.placement.topology.data_parallel_size,
            node_address=spec.placement.master_address,
            log_path=str(spec.log_path),
        )
        self._site_weights = ""
        self._life: asyncio.Task[None] | None = None

    async def prepare(self) -> bool:
        """Have the model's files where they are needed; False when the engine has failed over it."""
        self._life = asyncio.create_task(self._telling(self._provide_weights()))
        await asyncio.wait([self._life])
        return not self._status.state.is_over

    async def launch(self) -> None:
        """Start `vllm serve`; returns at once."""
        self._begun = time.monotonic()
        self._life = asyncio.create_task(self._telling(self._live()))

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
        try:
            async with self._session() as session, session.get(f"{self._root_url()}/metrics") as answer:
                return _count_requests(await answer.text())
        except (aiohttp.ClientError, TimeoutError):
            return 0

    async def drain(self) -> None:
        """Take no new requests: every replica that watches answers 503 from now on."""
        if not self._status.state.is_over:
            await self._set(EngineState.STOPPING, "the run is stopping")

    async def stop(self) -> None:
        """End the engine and everything below it."""
        await self._cancel_life()
        await self._end(EngineState.STOPPED, "stopped")

    async def fail(self, why: str) -> None:
        """The same, for a reason that lies outside: the engine has failed."""
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
        except EngineStartError as error:
            await self._end(EngineState.FAILED, str(error))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, the engine has failed and must say so)
            await self._end(EngineState.FAILED, f"{type(error).__name__}: {error}")

    async def _provide_weights(self) -> None:
        self._site_weights, self.spec = await provide_weights(self.spec, self._tell)

    async def _live(self) -> None:
        await self._start()
        await self._watch_process()

    async def _start(self) -> None:
        for attempt in range(LAUNCH_ATTEMPTS):
            site = self._site(self._site_weights)
            self._launch(site)
            try:
                await self._wait_until_ready()
            except EngineStartError as error:
                if attempt + 1 == LAUNCH_ATTEMPTS or _PORT_TAKEN not in str(error).lower():
                    raise
                await asyncio.to_thread(self._guard.close)
            else:
                url = f"http://{self.spec.placement.master_address}:{site.port}/v1"
                await self._set(EngineState.HEALTHY, "", base_url=url, api_key=self.spec.api_key)
                return

    def _site(self, site_weights: str) -> command.Site:
        kind = machine.engine_kind()
        if kind is None:
            node = self.spec.placement.master_address
            raise EngineStartError(f"no vLLM is installed on {node}: pip install 'local_vllm[gpu]' there")
        return command.Site(
            kind=kind,
            port=machine.free_ports(1)[0],
            node_address=self.spec.placement.master_address,
            ray_address=ray.get_runtime_context().gcs_address,
            weights=site_weights,
            model_config=weights.read_model_config(site_weights, self.spec.hf_home),
            scratch=self.spec.scratch,
            environment=dict(os.environ),
        )

    def _launch(self, site: command.Site) -> None:
        self.spec.scratch.mkdir(parents=True, exist_ok=True)
        hidden = self.spec.scratch / "ray_non_carry_over_env_vars.json"
        hidden.write_text(json.dumps(command.SECRET_VARIABLES))
        self._port = site.port
        self._launched = time.monotonic()
        self._log = LogReader(self.spec.log_path)
        self._guard = Guarded(
            command.serve_command(self.spec, site),
            env=command.serve_environment(self.spec, site),
            log_path=self.spec.log_path,
            grace_s=STOP_GRACE_S,
        )

    async def _wait_until_ready(self) -> None:
        async with self._session() as session:
            while not await self._answers(session):
                if (status := self._guard.poll()) is not None:
                    raise EngineStartError(self._why(f"vLLM ended with status {status} while it was {self._log.phase}"))
                if time.monotonic() - self._launched > self.spec.start_timeout_s:
                    waited = f"vLLM did not answer within {self.spec.start_timeout_s:.0f} s (start_timeout_s)"
                    raise EngineStartError(self._why(f"{waited}; it was {self._log.phase}"))
                await self._tell(self._log.update())
                await asyncio.sleep(POLL_S)

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        """Ready means: the model's name is served, by a process of ours."""
        try:
            async with session.get(f"{self._root_url()}/v1/models") as answer:
                if answer.status != 200:
                    return False
                models = (await answer.json())["data"]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
            return False
        ours = set(descendants(self._guard.pid))
        return any(model["id"] == self.spec.served_name for model in models) and bool(listening_pids(self._port) & ours)

    async def _watch_process(self) -> None:
        while (status := self._guard.poll()) is None:
            await asyncio.sleep(POLL_S)
        raise EngineStartError(self._why(f"vLLM ended with status {status}"))

    def _why(self, what: str) -> str:
        self._log.update()
        return f"{what}; the last lines of {self.spec.log_path}:\n{self._log.tail()}"

    async def _end(self, state: EngineState, detail: str) -> None:
        if self._guard is not None:
            await asyncio.to_thread(self._guard.close)
        shutil.rmtree(self.spec.scratch, ignore_errors=True)
        await self._set(state, detail)

    async def _tell(self, detail: str, download: Download | None = None) -> None:
        if (detail, download) != (self._status.detail, self._status.download):
            await self._set(EngineState.STARTING, detail, download)

    async def _set(self, state: EngineState, detail: str, download: Download | None = None, **more: str) -> None:
        async with self._changed:
            version = self._status.version + 1
            self._status = replace(
                self._status, version=version, state=state, detail=detail, download=download, **more
            )
            self._changed.notify_all()

    def _root_url(self) -> str:
        return f"http://{self.spec.placement.master_address}:{self._port}"

    def _session(self) -> aiohttp.ClientSession:
        key = {"Authorization": f"Bearer {self.spec.api_key}"}
        return aiohttp.ClientSession(headers=key, timeout=aiohttp.ClientTimeout(total=2), trust_env=False)


def _count_requests(metrics: str) -> int:
    """Sum vLLM's gauges of running and waiting requests over its data-parallel ranks."""
    gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    # The second gauge has a variant by reason, whose name goes on after an underscore: only exact names count.
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in metrics.splitlines()
        if line.partition("{")[0].partition(" ")[0] in gauges
    )
