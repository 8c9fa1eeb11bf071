"""The application at `/`: picks the model server by the body's `model`, and catches everything unknown.

It calls the servers as objects in its own process, so a request makes no second hop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from local_vllm.errors import RequestError
from local_vllm.protocol import peek_model
from local_vllm.serving.asgi import Answer, HTTPApplication, Routes, Send, path_below_root
from local_vllm.serving.endpoints import NotReady, Ready
from local_vllm.serving.metrics import MetricsPage
from local_vllm.serving.model_server import ModelServer, models_reply, stored_responses
from local_vllm.serving.replies import Reply
from local_vllm.serving.requests import Limits, Receive, Request, Scope
from local_vllm.serving.traffic import Traffic


class Gateway:
    """An ASGI application over the model servers of a run, in the order of its configuration.

    Below `/<server name>` it hands over to that server whole, as Ray Serve does with its own routes. `replica` names
    this process.
    """

    def __init__(self, servers: Sequence[ModelServer], replica: str = "") -> None:
        self._servers = list(servers)
        self._by_name = {server.name: server for server in servers}
        by_model = {server.model: server for server in reversed(servers)}
        self._by_request = by_model | self._by_name
        limits = max((server.limits for server in servers), key=_size, default=Limits())
        unrouted = Traffic()
        self._metrics = MetricsPage(servers, replica, unrouted)
        self._application = HTTPApplication(self._routes(), limits, self.start, self.close, unrouted)

    def _routes(self) -> Routes:
        return {
            "/v1/responses": {"POST": self._post_responses},
            **stored_responses(self._servers).routes(),
            "/v1/chat/completions": {"POST": self._post_chat_completions},
            "/v1/models": {"GET": self._get_models},
            "/health": {"GET": self._get_health},
            "/metrics": {"GET": self._metrics.get},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = path_below_root(scope)
            if path not in self._application.routes:
                name = path.split("/", 2)[1]
                if name in self._by_name:
                    mounted = {**scope, "path": path, "root_path": f"/{name}"}
                    return await self._by_name[name](mounted, receive, send)
        await self._application(scope, receive, send)

    async def start(self) -> None:
        for server in self._servers:
            await server.start()

    async def close(self) -> None:
        await asyncio.gather(*(server.close() for server in self._servers))

    async def _post_responses(self, request: Request) -> Answer:
        body = await request.json_body()
        return await self._server_for(request, body).responses(request, body)

    async def _post_chat_completions(self, request: Request) -> Answer:
        body = await request.json_body()
        return await self._server_for(request, body).chat_completions(request, body)

    def _server_for(self, request: Request, body: bytes) -> ModelServer:
        """The server that the body names; the request counts as its own from here on."""
        model = peek_model(body)
        if model is None:
            raise RequestError("`model` is missing.", param="model", code="missing_required_parameter")
        server = self._by_request.get(model)
        if server is None:
            raise self._unknown(model)
        request.traffic = server.traffic
        server.limits.check_size(len(body))
        return server

    def _unknown(self, model: str) -> RequestError:
        known = ", ".join(dict.fromkeys(name for s in self._servers for name in (s.name, s.model)))
        message = f"The model {model!r} is not here. Known are: {known or 'none'}."
        return RequestError(message, status=404, param="model", code="model_not_found")

    async def _get_models(self, request: Request) -> Answer:
        return models_reply(self._servers)

    async def _get_health(self, request: Request) -> Answer:
        """200 once every server answers requests, and a word for each of them."""
        states = {server.name: server.state() for server in self._servers}
        waiting = [state for state in states.values() if isinstance(state, NotReady)]
        body = msgspec.json.encode({
            "status": waiting[0].state if waiting else "ready",
            "servers": {name: _in_words(state) for name, state in states.items()},
        })
        return Reply(503 if waiting else 200, body)


def _in_words(state: Ready | NotReady) -> dict[str, str]:
    if isinstance(state, Ready):
        return {"status": "ready"}
    return {"status": state.state, "message": state.message}


def _size(limits: Limits) -> int:
    return limits.max_body_bytes
