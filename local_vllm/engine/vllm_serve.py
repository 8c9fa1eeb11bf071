"""One `vllm serve`, as its node's process holds it: started until it generates, watched until it is lost, ended.

It runs under a guard, so it ends with this process. What its end means is left to the engine's actor.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable

import aiohttp
import ray

from local_vllm.cluster import machine
from local_vllm.engine import command, supervise, weights
from local_vllm.engine.log import LogReader
from local_vllm.engine.metrics import requests_in_flight
from local_vllm.engine.node_watch import NodeWatch
from local_vllm.engine.observe import Address, FarNode, Watch, answered_token
from local_vllm.engine.remedies import remedy
from local_vllm.engine.spec import LOG_FOLLOWS, EngineSpec
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


class VLLMServe:
    """One launch. `weights` is what vLLM is told to load; `tell` hears what it is doing while it starts."""

    def __init__(self, spec: EngineSpec, weights: str, tell: Callable[[str], Awaitable[None]]) -> None:
        self._spec = spec
        self._weights = weights
        self._tell = tell
        self._guard: Guarded | None = None
        self._port = 0
        self._launched = 0.0
        self._log = LogReader(spec.log_path)
        self._here = NodeWatch(spec.members)
        self._far: list[FarNode] = []

    @property
    def root_url(self) -> str:
        return f"http://{self._spec.placement.master_address}:{self._port}"

    async def start(self) -> None:
        """Return when each of its ranks has generated. Raises EngineStartError."""
        await asyncio.to_thread(self._clear_node)
        self._far = self._far_nodes()
        for attempt in range(LAUNCH_ATTEMPTS):
            self._launch(self._site())
            try:
                await self._wait_until_ready()
            except EngineStartError as error:
                if attempt + 1 == LAUNCH_ATTEMPTS or _PORT_TAKEN not in str(error).lower():
                    raise
                await self._end_here(at_once=False)
            else:
                return await self._settle()

    async def watch_over(self) -> None:
        """Until the engine is lost, which is raised as EngineLost."""
        vigil = supervise.Vigil.begin(self._spec.placement.topology.data_parallel_size)
        polled_at = 0.0
        async with Watch(self._address(), self._here, self._far) as watch:
            async for look in watch.looks():
                # It goes through all processes of the machine.
                if time.monotonic() - polled_at > POLL_GUARD_S:
                    polled_at = time.monotonic()
                    if (status := self._guard.poll()) is not None:
                        raise EngineLost(self._why(f"vLLM ended with status {status}"))
                vigil, actions = supervise.step(vigil, look, self._spec.stall_timeout_s)
                for action in actions:
                    if isinstance(action, supervise.GiveUp):
                        raise EngineLost(self._why(action.why), stalled=action.stalled)
                    watch.ask(action)

    async def requests_in_flight(self) -> int:
        """Requests that vLLM runs or holds in its queue now; 0 when it does not answer."""
        try:
            async with self._session() as session, session.get(f"{self.root_url}/metrics", timeout=_SHORT) as answer:
                return requests_in_flight(await answer.text())
        except (aiohttp.ClientError, TimeoutError):
            return 0

    async def end(self, *, at_once: bool) -> None:
        """End its processes on every node, and remove what they leave."""
        await self._end_here(at_once=at_once)
        await asyncio.gather(*(node.end() for node in self._far))
        shutil.rmtree(self._spec.scratch, ignore_errors=True)

    async def _end_here(self, *, at_once: bool) -> None:
        if self._guard is not None:
            await asyncio.to_thread(self._guard.close, at_once=at_once)
        await asyncio.to_thread(self._here.end)

    def _clear_node(self) -> None:
        members.sweep()
        self._here.end_earlier()

    async def _settle(self) -> None:
        """Begin to watch the processes that there are now, on every node."""
        self._here.settle()
        await asyncio.gather(*(node.settle() for node in self._far))

    def _far_nodes(self) -> list[FarNode]:
        """The processes there start while vLLM does."""
        nodes = {slot.node_id: slot.address for rank in self._spec.placement.ranks for slot in rank.slots}
        nodes.pop(self._spec.placement.master_node_id, None)
        return [FarNode(node_id, address, self._spec.members) for node_id, address in nodes.items()]

    def _site(self) -> command.Site:
        kind = machine.engine_kind()
        if kind is None:
            node = self._spec.placement.master_address
            raise EngineStartError(f"no vLLM is installed on {node}: pip install 'local_vllm[gpu]' there")
        return command.Site(
            kind=kind,
            port=machine.free_ports(1)[0],
            node_address=self._spec.placement.master_address,
            ray_address=ray.get_runtime_context().gcs_address,
            weights=self._weights,
            model_config=weights.read_model_config(self._weights, self._spec.hf_home),
            scratch=self._spec.scratch,
            environment=dict(os.environ),
        )

    def _launch(self, site: command.Site) -> None:
        self._spec.scratch.mkdir(parents=True, exist_ok=True)
        hidden = self._spec.scratch / "ray_non_carry_over_env_vars.json"
        hidden.write_text(json.dumps(command.SECRET_VARIABLES))
        self._spec.members.mkdir(mode=0o700, exist_ok=True)
        self._port = site.port
        self._launched = time.monotonic()
        self._log = LogReader(self._spec.log_path)
        # The actors of an attempt before are gone, and this one's are not.
        self._here = NodeWatch(self._spec.members)
        self._guard = Guarded(
            command.serve_command(self._spec, site),
            env=command.serve_environment(self._spec, site),
            log_path=self._spec.log_path,
            grace_s=STOP_GRACE_S,
            must_run=True,
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
        if time.monotonic() - self._launched > self._spec.start_timeout_s:
            waited = f"vLLM did not {what} within {self._spec.start_timeout_s:.0f} s (start_timeout_s)"
            raise EngineStartError(self._why(f"{waited}; it was {self._log.phase}"))
        await self._tell(self._log.update())
        await asyncio.sleep(POLL_S)

    async def _generates(self, session: aiohttp.ClientSession) -> None:
        """An engine is ready when each of its ranks has generated."""
        ranks = range(self._spec.placement.topology.data_parallel_size)
        await asyncio.gather(*(answered_token(session, self._address(), rank) for rank in ranks))

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        """The model's name is served, by a process of ours."""
        try:
            async with session.get(f"{self.root_url}/v1/models", timeout=_SHORT) as answer:
                if answer.status != 200:
                    return False
                models = (await answer.json())["data"]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
            return False
        ours = set(descendants(self._guard.pid))
        named = any(model["id"] == self._spec.served_name for model in models)
        return named and bool(listening_pids(self._port) & ours)

    def _address(self) -> Address:
        return Address(self.root_url, self._spec.api_key, self._spec.served_name)

    def _why(self, what: str) -> str:
        self._log.update()
        told = f"{what}{LOG_FOLLOWS}{self._spec.log_path}:\n{self._log.tail()}"
        advice = remedy(self._log.tail(SEARCHED_LINES), self._spec.vllm_serve_kwargs)
        return f"{told}\n{advice}" if advice else told

    def _session(self) -> aiohttp.ClientSession:
        key = {"Authorization": f"Bearer {self._spec.api_key}"}
        return aiohttp.ClientSession(headers=key, trust_env=False)
