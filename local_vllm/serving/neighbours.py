"""The other servers of a run, as an agent or an environment meets them: objects in its own process.

A model that is asked this way makes no hop of its own: what goes over HTTP next is the engine's. How they are
made is left to `deploy`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

from local_vllm.errors import RequestError
from local_vllm.serving.model_server import ModelServer
from local_vllm.serving.replies import Refused, Reply
from local_vllm.serving.requests import Request

# The cookies of one rollout, name -> value: what a server set is sent back to it.
Cookies = MutableMapping[bytes, bytes]
Made = TypeVar("Made")


class Model:
    """A model server of this run, asked in this process."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server

    @property
    def name(self) -> str:
        return self._server.name

    async def respond(self, body: bytes, cookies: Cookies) -> bytes:
        """The answer to a Responses request, whole, as JSON. `cookies` are sent, and brought up to date.

        Raises RequestError, EngineUnavailable and UpstreamError as the server does over HTTP, and Refused
        with the answer when it is an error of the engine.
        """
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

    def state(self) -> Any:
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
    return Request({"type": "http", "headers": headers}, _nothing_comes, server.limits)


async def _nothing_comes() -> MutableMapping[str, Any]:
    raise RuntimeError("the body was handed over already")


def _keep_cookies(answer: Reply, cookies: Cookies) -> None:
    for header, line in answer.headers:
        if header == b"set-cookie":
            with contextlib.suppress(ValueError):
                name, value = line.split(b";", 1)[0].strip().split(b"=", 1)
                cookies[name] = value
