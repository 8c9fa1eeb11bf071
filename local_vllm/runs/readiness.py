"""Waits until a run answers: Serve first, with 503 while the engines start, then every engine and the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp

from local_vllm.engine.owned import OwnedEngine, first_failure
from local_vllm.engine.spec import EngineState
from local_vllm.errors import ClusterError
from local_vllm.runs.applications import Deployed
from local_vllm.runs.threads import in_thread
from local_vllm.serving.deploy import not_running
from local_vllm.serving.watched_endpoints import UNREACHABLE

SERVE_DEADLINE_S = 300.0
LOOK_AGAIN_S = 0.1


async def until_ready(
    engines: Sequence[OwnedEngine], deployed: Deployed, serve_answers: Callable[[], None]
) -> list[str]:
    """Return when every server answers requests; `serve_answers` is called when Serve does.

    Servers over engines of somebody else's are not waited for: the messages of those that cannot reach any are returned.

    Raises:
        EngineStartError: an engine has failed.
        ClusterError: Serve did not come up in time.
    """
    serve_ready = asyncio.create_task(_until_serve_answers(deployed, serve_answers))
    try:
        while not (serve_ready.done() and all(e.status.state is EngineState.HEALTHY for e in engines)):
            _raise_failure(engines)
            if serve_ready.done():
                serve_ready.result()
            await asyncio.sleep(LOOK_AGAIN_S)
        serve_ready.result()
        return await _unless_an_engine_fails(engines, until_all_answer(deployed.url))
    finally:
        serve_ready.cancel()


def _raise_failure(engines: Sequence[OwnedEngine]) -> None:
    if failure := first_failure(engines):
        raise failure


async def _unless_an_engine_fails(engines: Sequence[OwnedEngine], waiting: Awaitable[list[str]]) -> list[str]:
    task = asyncio.ensure_future(waiting)
    try:
        while not task.done():
            _raise_failure(engines)
            await asyncio.sleep(LOOK_AGAIN_S)
        return task.result()
    finally:
        task.cancel()


async def _until_serve_answers(deployed: Deployed, serve_answers: Callable[[], None]) -> None:
    """Every application runs, and the gateway answers; 503 is an answer while the engines start."""
    deadline = time.monotonic() + SERVE_DEADLINE_S
    while waiting := await in_thread(lambda: not_running(deployed.names)):
        if time.monotonic() > deadline:
            raise ClusterError(f"Ray Serve did not bring up {waiting} within {SERVE_DEADLINE_S:.0f} s")
        await asyncio.sleep(0.2)
    await _until_health(deployed.url, lambda health: True)
    serve_answers()


async def until_all_answer(url: str) -> list[str]:
    """Wait for the gateway's servers, but not for engines of somebody else's; gives what is said of those."""
    servers = (await _until_health(url, _all_answer))["servers"]
    return [f"{name}: {state['message']}" for name, state in servers.items() if state["status"] == UNREACHABLE]


def _all_answer(health: dict[str, Any]) -> bool:
    return all(state["status"] in ("ready", UNREACHABLE) for state in health["servers"].values())


async def _until_health(url: str, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What the gateway says of its servers, as soon as that is `enough`."""
    deadline = time.monotonic() + SERVE_DEADLINE_S
    seen = "no answer"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), trust_env=False) as session:
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{url}/health") as answer:
                    seen = f"status {answer.status}: {(await answer.text())[:300]}"
                    if answer.content_type == "application/json" and answer.status in (200, 503):
                        if enough(health := await answer.json()):
                            return health
            await asyncio.sleep(0.1)
    raise ClusterError(
        f"{url}/health did not answer as a gateway whose servers are ready within {SERVE_DEADLINE_S:.0f} s "
        f"(it said: {seen}); if Ray Serve on this cluster listens elsewhere, set ++http_host and ++http_port to that"
    )
