"""The short way from the HTTP server of one of Serve's replicas to the application in it.

Serve does for each request what we do not need, in twice the CPU time of the HTTP server itself: two tasks, ids, metrics
of its own. It calls a function that a variable names (`serve_settings.SHORTCUT`) for middleware around its own
handling; ours hands requests to the application at once. What is not the application's goes to Serve: its health checks,
and paths that are not below the replica's route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.middleware import Middleware

from local_vllm.protocol.keys import unpredictable_keys
from local_vllm.serving.asgi import Application, Send
from local_vllm.serving.requests import REQUEST_ID, Receive, Scope

SERVES_OWN = "/-/"
_IDS = unpredictable_keys()


class Mounted:
    """The application of a replica whose route is `route`: what Serve is given, and what the shortcut leads to."""

    here: Mounted | None = None

    def __init__(self, application: Application, route: str) -> None:
        self._application = application
        self._root = route.rstrip("/")
        self._below = self._root + "/"
        self._loop: asyncio.AbstractEventLoop | None = None
        Mounted.here = self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._loop = asyncio.get_running_loop()
        await self._application(scope, receive, send)

    def takes(self, scope: Scope) -> bool:
        """Whether the request is the application's, and has come in the event loop that the application lives in: with
        other settings of Serve it has one of its own.
        """
        if scope["type"] != "http":
            return False
        path: str = scope["path"]
        return (
            (path.startswith(self._below) or path == self._root)
            and not path.startswith(SERVES_OWN)
            and self._loop is asyncio.get_running_loop()
        )

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """With the root path and the request's id as Serve would have them."""
        scope["root_path"] = scope.get("root_path", "") + self._root
        scope[REQUEST_ID] = _given_id(scope["headers"]) or next(_IDS).encode()
        await self._application(scope, receive, send)


def _given_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The id that the client has given the request."""
    for name, value in headers:
        if name == b"x-request-id":
            return value
    return b""


class Shortcut:
    """Around the handling of a server of Serve's: a replica's, or that of a proxy, which has no application."""

    def __init__(self, app: Application) -> None:
        self._serve = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        mounted = Mounted.here
        if mounted is not None and mounted.takes(scope):
            await mounted.answer(scope, receive, send)
        else:
            await self._serve(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve asks for when it starts an HTTP server."""
    return [Middleware(Shortcut)]
