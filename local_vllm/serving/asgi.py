"""The ASGI frame around every application here: routes, errors, start and end, and clients that go away.

What a route answers is left to the applications. Nothing here knows of Ray: it runs under uvicorn as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from itertools import chain
from typing import Any

from local_vllm.errors import LocalVLLMError, RequestError
from local_vllm.serving.replies import Reply, StreamReply, failure_reply, failure_status, logger
from local_vllm.serving.requests import REQUEST_ID, ClientGone, Limits, Receive, Request, Scope
from local_vllm.serving.traffic import CLIENT_GONE, Traffic

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Work = Callable[[], Awaitable[None]]

Answer = Reply | StreamReply
Handler = Callable[[Request], Awaitable[Answer]]
Routes = Mapping[str, Mapping[str, Handler]]

# What is counted of a path that leads nowhere.
NO_ROUTE = "none"


class HTTPApplication:
    """An ASGI application that answers HTTP from `routes` and takes no websockets.

    `start` runs when its server comes up, and `close` when that goes down. Requests are counted in `traffic`.
    """

    __slots__ = ("routes", "_limits", "_start", "_close", "_traffic")

    def __init__(
        self, routes: Routes, limits: Limits, start: Work, close: Work, traffic: Traffic | None = None
    ) -> None:
        self.routes = routes
        self._limits = limits
        self._traffic = traffic
        self._start = start
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _answer_http(self.routes, Request(scope, receive, self._limits, self._traffic), send)
        elif scope["type"] == "lifespan":
            await _answer_lifespan(self._start, self._close, receive, send)
        else:
            await _refuse_websocket(receive, send)


async def _answer_http(routes: Routes, request: Request, send: Send) -> None:
    """Answers one HTTP request from `routes` (path below the root path -> method -> handler)."""
    begun, status = time.perf_counter(), CLIENT_GONE
    route = _route(routes, request.scope)
    try:
        answer = await _answer(routes.get(route), request)
        if isinstance(answer, Reply):
            request.stop_watching()
            await send_whole(answer, send, request.scope)
            status = answer.status
        else:
            status = await _send_stream(answer, request, send)
    except ClientGone:
        return
    except asyncio.CancelledError:
        if not request.client_gone:
            raise
        asyncio.current_task().uncancel()  # type: ignore[union-attr]
    except Exception:
        status = 500
        raise
    finally:
        request.stop_watching()
        request.close()
        if request.traffic is not None:
            request.traffic.ended(route, status, time.perf_counter() - begun)


async def _answer(methods: Mapping[str, Handler] | None, request: Request) -> Answer:
    try:
        _check_header_size(request)
        return await _find(methods, request.scope)(request)
    except ClientGone:
        raise
    except Exception as error:
        return failure_reply(error)


def _check_header_size(request: Request) -> None:
    size = sum(map(len, chain.from_iterable(request.scope["headers"])))
    if size > request.limits.max_header_bytes:
        message = f"The headers are larger than {request.limits.max_header_bytes} bytes."
        raise RequestError(message, status=431, code="request_header_fields_too_large")


def _find(methods: Mapping[str, Handler] | None, scope: Scope) -> Handler:
    """What answers the request's method, of those that its path takes."""
    if methods is None:
        raise RequestError(f"Nothing is at {path_below_root(scope)}.", status=404, code="not_found")
    method = scope["method"]
    handler = methods.get("GET" if method == "HEAD" else method)
    if handler is None:
        message = f"{path_below_root(scope)} does not take {method}; use {', '.join(methods)}."
        raise RequestError(message, status=405, code="method_not_allowed")
    return handler


def _route(routes: Routes, scope: Scope) -> str:
    """The key of `routes` under which the path is found."""
    path = path_below_root(scope)
    if path in routes:
        return path
    template = _template(path)
    return template if template in routes else NO_ROUTE


def _template(path: str) -> str:
    """`/v1/responses/{id}/...` for `/v1/responses/resp_1/...`: the fourth part of a path names one of many."""
    parts = path.split("/")
    if len(parts) < 4 or not parts[3]:
        return path
    return "/".join([*parts[:3], "{id}", *parts[4:]])


def path_below_root(scope: Scope) -> str:
    """The path relative to where the application is mounted, whether the server left that in or not."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root):
        below = path[len(root) :]
        if below[:1] in ("", "/"):
            return below or "/"
    return path


async def send_whole(reply: Reply, send: Send, scope: Scope) -> None:
    headers = [*_headers(reply, scope), (b"content-length", b"%d" % len(reply.body))]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _headers(reply: Reply | StreamReply, scope: Scope) -> list[tuple[bytes, bytes]]:
    if REQUEST_ID in scope:
        return [*reply.headers, (b"x-request-id", scope[REQUEST_ID])]
    return [*reply.headers]


async def _send_stream(reply: StreamReply, request: Request, send: Send) -> int:
    """Gives the status that the answer would have had, had all been known when it began."""
    failure: Exception | None = None
    async with reply.resources:
        headers = _headers(reply, request.scope)
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        try:
            async for chunk in reply.chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except LocalVLLMError as error:
            failure = error
            event = b"data: " + failure_reply(error).body + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
    request.stop_watching()
    await send({"type": "http.response.body", "body": b""})
    failure = failure or reply.failure()
    return reply.status if failure is None else failure_status(failure)


async def _answer_lifespan(start: Work, close: Work, receive: Receive, send: Send) -> None:
    """Runs `start` when the server comes up and `close` when it goes down."""
    await receive()
    try:
        await start()
    except Exception as error:
        logger.error("The application could not start", exc_info=error)
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await close()
    await send({"type": "lifespan.shutdown.complete"})


async def _refuse_websocket(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 1000, "reason": "There are no websockets here."})
