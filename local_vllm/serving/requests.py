"""One HTTP request: its body within limits, and the watch over the client that sent it.

Nothing here knows of Ray: it runs under uvicorn as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from local_vllm.errors import RequestError
from local_vllm.serving.replies import Refused, overloaded_reply
from local_vllm.serving.traffic import Traffic

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# The key of a request's scope that has the id which its answer is to tell, where nobody else tells one.
REQUEST_ID = "local_vllm.request_id"
# Nobody goes away within this time in a way that matters; short calls are spared a task.
WATCH_AFTER_S = 0.1
BODIES_RETRY_AFTER_S = 2


class Bodies:
    """The bytes of all bodies that a process has been sent and has not answered."""

    __slots__ = ("max_bytes", "held")

    def __init__(self, max_bytes: int = 4 << 30) -> None:
        self.max_bytes = max_bytes
        self.held = 0


# One for the whole process, whichever server a request is for.
BODIES = Bodies()


class Place(Protocol):
    """What a request takes while it is answered."""

    def leave(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost before anybody looks at it, and all of them together in `bodies`."""

    max_body_bytes: int = 64 << 20
    body_timeout_s: float = 60.0
    max_header_bytes: int = 32 << 10
    bodies: Bodies = BODIES

    def check_size(self, size: int) -> None:
        """Raises RequestError (413) for a body that is too large."""
        if size > self.max_body_bytes:
            message = f"The body is larger than {self.max_body_bytes} bytes."
            raise RequestError(message, status=413, code="request_too_large")


class ClientGone(Exception):
    """The client closed its connection: there is nobody to answer."""


class Request:
    """One HTTP request, and the watch over the client that sent it.

    From the moment its body is there, the task that answers it is cancelled when the client goes away. `traffic` is
    where its end is counted.
    """

    __slots__ = (
        "scope", "limits", "headers", "client_gone", "place", "traffic",
        "_receive", "_held", "_timer", "_watch", "_task", "_has_body", "_is_slow", "_is_late",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, limits: Limits, traffic: Traffic | None = None) -> None:
        self.scope = scope
        self.limits = limits
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.client_gone = False
        self.place: Place | None = None
        self.traffic = traffic
        self._receive = receive
        self._held = 0
        self._has_body = self._is_slow = self._is_late = False
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None

    async def json_body(self) -> bytes:
        """The bytes of a body that says it is JSON. Raises RequestError (408, 413, 415) and ClientGone."""
        self._check_headers()
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(loop)
        self._timer = loop.call_later(min(WATCH_AFTER_S, self.limits.body_timeout_s), self._look)
        try:
            body, more = self._piece(await self._receive())
            # Nearly all bodies come as one piece.
            if more:
                body = await self._whole(body)
        except asyncio.CancelledError:
            if not self._is_late or self._task.uncancel() > 0:  # type: ignore[union-attr]
                raise
            message = f"The body did not arrive within {self.limits.body_timeout_s:g} s."
            raise RequestError(message, status=408, code="request_timeout") from None
        self._has_body = True
        if self._is_slow:
            self._timer.cancel()
            self._begin_to_watch()
        return body

    def _look(self) -> None:
        """One timer is enough for nearly all: their body is there by now."""
        if self._has_body:
            return self._begin_to_watch()
        self._is_slow = True
        left_s = max(0.0, self.limits.body_timeout_s - WATCH_AFTER_S)
        self._timer = asyncio.get_running_loop().call_later(left_s, self._give_up_on_body)

    def _give_up_on_body(self) -> None:
        self._is_late = True
        self._task.cancel()  # type: ignore[union-attr]

    async def _whole(self, begun: bytes) -> bytes:
        """The body that begins so, to its end."""
        pieces, more = bytearray(begun), True
        while more:
            piece, more = self._piece(await self._receive())
            pieces += piece
            self.limits.check_size(len(pieces))
        return bytes(pieces)

    def _piece(self, message: Mapping[str, Any]) -> tuple[bytes, bool]:
        """The piece of the body that a message brings, and whether there are more."""
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size = len(piece)
        self.hold(size)
        self.limits.check_size(size)
        return piece, message.get("more_body", False)

    def hold(self, size: int) -> None:
        """Count bytes that have come, or were read for it. Raises Refused (429) when a process would hold more than it
        may.
        """
        bodies = self.limits.bodies
        if bodies.held + size > bodies.max_bytes:
            message = f"Requests in flight here hold {bodies.held >> 20} MiB, as much as they may: ask again later."
            raise Refused(overloaded_reply(message, BODIES_RETRY_AFTER_S))
        bodies.held += size
        self._held += size

    def close(self) -> None:
        """Let go of what it took: nobody answers it any more."""
        self.limits.bodies.held -= self._held
        self._held = 0
        place, self.place = self.place, None
        if place is not None:
            place.leave()

    def _check_headers(self) -> None:
        kind = self.headers.get(b"content-type")
        if kind is not None and kind != b"application/json":
            _check_content_type(kind)
        length = self.headers.get(b"content-length")
        if length is not None and length.isdigit():
            self.limits.check_size(int(length))

    def watch_client(self) -> None:
        """From now on the task that runs is cancelled when the client goes away; its body has been read."""
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin_to_watch)

    def _begin_to_watch(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self.client_gone = True
            self._task.cancel()

    def stop_watching(self) -> None:
        """Called before the last byte is sent: a server says `disconnect` after that too."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()


def _check_content_type(kind: bytes) -> None:
    essence = kind.split(b";", 1)[0].strip().lower()
    if essence != b"application/json" and not (
        essence.startswith(b"application/") and essence.endswith(b"+json")
    ):
        shown = kind.decode("latin-1")[:100]
        message = f"The body has to be application/json, and says it is {shown}."
        raise RequestError(message, status=415, code="unsupported_media_type")
