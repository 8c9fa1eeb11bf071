"""The direct way as vLLM has it: the middleware around an application that asks for a key, under a real uvicorn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from stand_in_engine import MODEL, StandInEngine, serving

from local_vllm.config.own_engines import LocalVLLMModelSettings
from local_vllm.engine.spec import DIRECT_VARIABLE
from local_vllm.serving.direct import DirectResponses
from local_vllm.serving.direct_settings import plain
from local_vllm.serving.request_settings import direct_settings

KEY = "key of the engine"
ASK = {"input": "Hi"}


class Guarded:
    """Refuses whoever has no key before anything of theirs is read, below /v1, as vLLM does."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope.get("path", "").startswith("/v1") and (b"authorization", f"Bearer {KEY}".encode()) not in scope["headers"]:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            return await send({"type": "http.response.body", "body": b'{"error":"Unauthorized"}'})
        await self._app(scope, receive, send)


class FailingApplication(StandInEngine):
    """Breaks down over every request, once it has sent `first`."""

    def __init__(self, *first: dict[str, Any]) -> None:
        super().__init__()
        self.first = first

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        for message in self.first:
            await send(message)
        raise RuntimeError("of no concern to clients")


def engine_settings(**settings: Any) -> LocalVLLMModelSettings:
    sizes = {f"{kind}_parallel_size": 1 for kind in ("data", "tensor", "pipeline")}
    required = {"vllm_serve_kwargs": sizes | {"served_model_name": MODEL}, "vllm_serve_env_vars": {}}
    return LocalVLLMModelSettings(model="my/model", direct_responses=True, **required | settings)


@asynccontextmanager
async def directly(
    engine: StandInEngine, monkeypatch: pytest.MonkeyPatch, *, around: Callable = lambda app: app, **settings: Any
) -> AsyncIterator[str]:
    """The address of `engine`, which answers in the same process. `around` is a middleware of the user's own."""
    told = plain(direct_settings("policy_model", engine_settings(**settings)))
    monkeypatch.setenv(DIRECT_VARIABLE, json.dumps(told))
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    async with serving(around(DirectResponses(Guarded(engine))), lifespan="off") as address:
        yield address


async def ask(
    address: str, body: Any = ASK, *, path: str = "/v1/responses", method: str = "POST", key: str = KEY, **headers: str
) -> tuple[int, aiohttp.typedefs.LooseHeaders, bytes]:
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named |= {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession() as session:
        async with session.request(method, address + path, data=given, headers=named) as answer:
            return answer.status, answer.headers, await answer.read()


async def leave(address: str, body: Any, after_s: float = 0.25) -> None:
    """Ask, and go away in the middle of the answer."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(after_s):
            await ask(address, body)
