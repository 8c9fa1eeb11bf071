"""The other servers of a run, as an agent or an environment meets them: objects in its own process.

A model that is asked this way makes no hop of its own: what goes over HTTP next is the engine's. How they are
made is left to `deploy`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

from local_vllm.errors import RequestError
from local_vllm.serving.admission import ROLLOUT
from local_vllm.serving.endpoints import NotReady, Ready
from local_vllm.serving.model_server import ModelServer
from local_vllm.serving.replies import Refused, Reply, not_ready_reply
from local_vllm.serving.requests import Request

# The cookies of one rollout, name -> value: what a server set is sent back to it.
Cookies = MutableMapping[bytes, bytes]
Made = TypeVar("Made")

# Some eight minutes in all: what is in flight at an engine ends, and makes room.
WAITS = 20
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30


class Model:
    """A model server of this run, asked in this process."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server

    @property
    def name(self) -> str:
        return self._server.name

    async def respond(self, body: bytes, cookies: Cookies) -> bytes:
        """The answer to a Responses request, whole, as JSON. `cookies` are sent, and brought up to date.

        A 429 that says when to ask again is waited out, WAITS times, so that a long conversation is not lost to it.

        Raises RequestError, EngineUnavailable and UpstreamError as the server does over HTTP, and Refused
        with the answer when it is an error of the engine.
        """
        for waits in range(WAITS):
            try:
                return await self._respond(body, cookies)
            except Refused as refused:
                wait_s = _wait_s(refused.reply, waits)
                if wait_s is None:
                    raise
            await asyncio.sleep(wait_s)
        return await self._respond(body, cookies)

    async def _respond(self, body: bytes, cookies: Cookies) -> bytes:
        request = _request(cookies, self._server)
        try:
            answer = await self._server.responses(request, body)
        finally:
            request.close()
        if not isinstance(answer, Reply):
            await answer.resources.__aexit__(None, None, None)
            raise RequestError("A rollout is not streamed: leave `stream` out.", param="stream")
        _keep_cookies(answer, cookies)
        if answer.status != 200:
            raise Refused(answer)
        return answer.body

    def state(self) -> Ready | NotReady:
        """Ready or NotReady, as the server says of itself."""
        return self._server.state()

    async def start(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        await self._server.close()


class Neighbours:
    """Makes each neighbour once, when it is first asked for; `start` and `close` are for all of them."""

    def __init__(
        self,
        make_model: Callable[[str], ModelServer],
        make_app: Callable[[str, Neighbours], object],
        serve_url: str,
        key: str = "",
    ) -> None:
        """`key` opens the servers of the run to one another, over HTTP."""
        self._make_model = make_model
        self._make_app = make_app
        self._serve_url = serve_url
        self.key = key
        self._models: dict[str, Model] = {}
        self._resources: dict[str, object] = {}

    def not_ready(self) -> Reply | None:
        """The answer of a server's `/health` while one of its models cannot answer; None when all can."""
        for model in self._models.values():
            state = model.state()
            if isinstance(state, NotReady):
                return not_ready_reply(model.name, state)
        return None

    def model(self, name: str) -> Model:
        """The model server called `name`."""
        return _once(self._models, name, lambda: Model(self._make_model(name)))

    def resources(self, name: str) -> Any:
        """The resources server called `name`: an object of its own, apart from the application at its URL."""
        return _once(self._resources, name, lambda: self._make_app(name, self))

    def url(self, name: str) -> str:
        """Where the application of the server called `name` is, without a closing slash."""
        return f"{self._serve_url}/{name}"

    async def start(self) -> None:
        for model in self._models.values():
            await model.start()

    async def close(self) -> None:
        for model in self._models.values():
            await model.close()


def _once(made: dict[str, Made], name: str, make: Callable[[], Made]) -> Made:
    if name not in made:
        made[name] = make()
    return made[name]


def _request(cookies: Cookies, server: ModelServer) -> Request:
    line = b"; ".join(b"%s=%s" % pair for pair in cookies.items())
    headers = [(b"cookie", line)] if line else []
    # A rollout is one task, and one session where places are shared out; by any other name it would be routed.
    scope = {"type": "http", "headers": headers, ROLLOUT: b"%x" % id(asyncio.current_task())}
    return Request(scope, _nothing_comes, server.limits)


def _wait_s(refusal: Reply, waits: int) -> float | None:
    """How long to wait after so many waits; None for what is no 429, or does not say when to ask again."""
    said = next((value for name, value in refusal.headers if name == b"retry-after"), None)
    if refusal.status != 429 or said is None or not said.isdigit() or int(said) > LONGEST_WAIT_S:
        return None
    growing = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**waits)
    return max(float(said), growing * random.uniform(0.5, 1.0)) + growing * random.uniform(0.0, 0.5)


async def _nothing_comes() -> MutableMapping[str, Any]:
    raise RuntimeError("the body was handed over already")


def _keep_cookies(answer: Reply, cookies: Cookies) -> None:
    for header, line in answer.headers:
        if header == b"set-cookie":
            with contextlib.suppress(ValueError):
                name, value = line.split(b";", 1)[0].strip().split(b"=", 1)
                cookies[name] = value
