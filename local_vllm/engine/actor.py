"""The Ray actor that hosts one launch of an engine on the node of data-parallel rank 0: starts, watches, tells.

It owns the guard of `vllm serve`, so the engine ends with it. What the state means to requests is left to serving/,
and starting an engine again that was lost, by another such actor, to the run.
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

import aiohttp
import ray

from local_vllm.cluster import machine
from local_vllm.engine import command, supervise, weights
from local_vllm.engine.log import LogReader
from local_vllm.engine.metrics import requests_in_flight
from local_vllm.engine.node_watch import NodeWatch
from local_vllm.engine.observe import Address, FarNode, Watch, answered_token
from local_vllm.engine.remedies import remedy
from local_vllm.engine.spec import LOG_FOLLOWS, Download, EngineSpec, EngineState, EngineStatus
from local_vllm.engine.weights_on_nodes import provide_weights
from local_vllm.errors import EngineLost, EngineStartError
from local_vllm.processes import members
from local_vllm.processes.guarded import Guarded
from local_vllm.processes.listeners import listening_pids
from local_vllm.processes.tree import descendants

POLL_S = 0.25
POLL_GUARD_S = 1.0
STOP_GRACE_S = 6.0
LAUNCH_ATTEMPTS = 3
_PORT_TAKEN = "address already in use"
# The cause of an end stands far above its last lines, among the tracebacks of several processes.
SEARCHED_LINES = 1000
_SHORT = aiohttp.ClientTimeout(total=2)


class EngineHost:
    """One engine, from launch to end. Its methods are called through Ray; none of them blocks the event loop."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._begun = time.monotonic()
        self._changed = asyncio.Condition()
        self._guard: Guarded | None = None
        self._port = 0
        self._log = LogReader(spec.log_path)
        self._coming_up = EngineState.RESTARTING if spec.restarts else EngineState.STARTING
        self._here = NodeWatch(spec.members)
        self._far: list[FarNode] = []
        self._status = EngineStatus(
            version=1,
            server=spec.server,
            model=spec.served_name,
            state=self._coming_up,
            detail="starting",
            ranks=spec.placement.topology.data_parallel_size,
            node_address=spec.placement.master_address,
            log_path=str(spec.log_path),
            restarts=spec.restarts,
            max_restarts=spec.max_restarts,
        )
        self._site_weights = ""
        self._life: asyncio.Task[None] | None = None

    async def prepare(self) -> bool:
        """Have the model's files where they are needed; False when that has failed."""
        self._life = asyncio.create_task(self._telling(self._provide_weights()))
        await asyncio.wait([self._life])
        return self._status.state.is_coming_up

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
            async with self._session() as session, session.get(f"{self._root_url()}/metrics", timeout=_SHORT) as answer:
                return requests_in_flight(await answer.text())
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

    async def restarting(self, restarts: int, detail: str) -> None:
        """Tell that another actor will start the engine again: until it has taken over, this one is asked."""
        await self._set(EngineState.RESTARTING, detail, restarts=restarts)

    async def fail(self, why: str) -> None:
        """The same, for a reason that lies outside: the start has gone wrong."""
        await self._cancel_life()
        await self._end(self._end_of_start, why)

    async def give_up(self, why: str) -> None:
        """The same, for good: the engine is not started again."""
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
        except EngineLost as error:
            await self._lose(EngineState.STALLED if error.stalled else EngineState.LOST, str(error))
        except EngineStartError as error:
            await self._lose(self._end_of_start, str(error))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, the engine has failed and must say so)
            await self._lose(self._end_of_start, f"{type(error).__name__}: {error}")

    @property
    def _end_of_start(self) -> EngineState:
        """A first start that goes wrong would go wrong again; an engine that was well before is worth a try."""
        return EngineState.LOST if self.spec.restarts else EngineState.FAILED

    async def _provide_weights(self) -> None:
        self._site_weights, self.spec = await provide_weights(self.spec, self._tell)

    async def _live(self) -> None:
        await asyncio.to_thread(self._clear_node)
        await self._start()
        await self._watch_over()

    def _clear_node(self) -> None:
        members.sweep()
        self._here.end_earlier()

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
                await self._settle()
                await self._set(EngineState.HEALTHY, "", base_url=f"{self._root_url()}/v1", api_key=self.spec.api_key)
                return

    async def _settle(self) -> None:
        """Begin to watch the processes that there are now, on every node."""
        self._here.settle()
        nodes = {slot.node_id: slot.address for rank in self.spec.placement.ranks for slot in rank.slots}
        nodes.pop(self.spec.placement.master_node_id, None)
        self._far = [FarNode(node_id, address, self.spec.members) for node_id, address in nodes.items()]
        await asyncio.gather(*(node.settle() for node in self._far))

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
                await self._still_starting("answer")
            generating = asyncio.create_task(self._generates(session))
            try:
                while not generating.done():
                    await self._still_starting("generate")
                generating.result()
            finally:
                generating.cancel()

    async def _still_starting(self, what: str) -> None:
        if (status := self._guard.poll()) is not None:
            raise EngineStartError(self._why(f"vLLM ended with status {status} while it was {self._log.phase}"))
        if (lost := self._here.lost_while_starting()) is not None:
            raise EngineStartError(self._why(f"{lost} has ended while vLLM was {self._log.phase}"))
        if time.monotonic() - self._launched > self.spec.start_timeout_s:
            waited = f"vLLM did not {what} within {self.spec.start_timeout_s:.0f} s (start_timeout_s)"
            raise EngineStartError(self._why(f"{waited}; it was {self._log.phase}"))
        await self._tell(self._log.update())
        await asyncio.sleep(POLL_S)

    async def _generates(self, session: aiohttp.ClientSession) -> None:
        """An engine is ready when each of its ranks has generated."""
        ranks = range(self.spec.placement.topology.data_parallel_size)
        await asyncio.gather(*(answered_token(session, self._address(), rank) for rank in ranks))

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        """The model's name is served, by a process of ours."""
        try:
            async with session.get(f"{self._root_url()}/v1/models", timeout=_SHORT) as answer:
                if answer.status != 200:
                    return False
                models = (await answer.json())["data"]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
            return False
        ours = set(descendants(self._guard.pid))
        return any(model["id"] == self.spec.served_name for model in models) and bool(listening_pids(self._port) & ours)

    async def _watch_over(self) -> None:
        """Until the engine is lost, which is raised."""
        vigil = supervise.Vigil.begin(self.spec.placement.topology.data_parallel_size)
        polled_at = 0.0
        async with Watch(self._address(), self._here, self._far) as watch:
            async for look in watch.looks():
                # It goes through all processes of the machine.
                if time.monotonic() - polled_at > POLL_GUARD_S:
                    polled_at = time.monotonic()
                    if (status := self._guard.poll()) is not None:
                        raise EngineLost(self._why(f"vLLM ended with status {status}"))
                vigil, actions = supervise.step(vigil, look, self.spec.stall_timeout_s)
                for action in actions:
                    if isinstance(action, supervise.GiveUp):
                        raise EngineLost(self._why(action.why), stalled=action.stalled)
                    watch.send_canary(action.rank)

    def _address(self) -> Address:
        return Address(self._root_url(), self.spec.api_key, self.spec.served_name)

    def _why(self, what: str) -> str:
        self._log.update()
        told = f"{what}{LOG_FOLLOWS}{self.spec.log_path}:\n{self._log.tail()}"
        advice = remedy(self._log.tail(SEARCHED_LINES), self.spec.vllm_serve_kwargs)
        return f"{told}\n{advice}" if advice else told

    async def _lose(self, state: EngineState, why: str) -> None:
        """What was well is told of first of all: whoever waits for the engine waits in vain."""
        if not state.is_lost:
            return await self._end(state, why)
        await self._set(state, why, base_url="")
        await self._end_processes(at_once=True)

    async def _end(self, state: EngineState, detail: str) -> None:
        await self._end_processes(at_once=False)
        await self._set(state, detail)

    async def _end_processes(self, *, at_once: bool) -> None:
        if self._guard is not None:
            await asyncio.to_thread(self._guard.close, at_once=at_once)
        await asyncio.gather(asyncio.to_thread(self._here.end), *(node.end() for node in self._far))
        shutil.rmtree(self.spec.scratch, ignore_errors=True)

    async def _tell(self, detail: str, download: Download | None = None) -> None:
        if (detail, download) != (self._status.detail, self._status.download):
            await self._set(self._coming_up, detail, download)

    async def _set(self, state: EngineState, detail: str, download: Download | None = None, **more: object) -> None:
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
        return aiohttp.ClientSession(headers=key, trust_env=False)
