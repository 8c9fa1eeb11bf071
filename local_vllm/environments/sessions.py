"""The sessions of a resources server in one process: so many at most, each until it was idle for too long."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from local_vllm.errors import EngineUnavailable


@dataclass(slots=True)
class Seat:
    """What one rollout has at a resources server: the session that its tools share."""

    session: Any
    used_at: float


class SessionTable:
    """Sessions by key, the one that was used longest ago first. A key is its owner's secret."""

    def __init__(
        self,
        most: int,
        idle_s: float,
        make: Callable[[], Any],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._idle_s = idle_s
        self._make = make
        self._clock = clock
        self._seats: OrderedDict[bytes, Seat] = OrderedDict()

    def open(self) -> tuple[bytes, Any]:
        """A new session and its key; the session that was used longest ago makes room."""
        self._drop_idle()
        while len(self._seats) >= self._most:
            self._seats.popitem(last=False)
        key = secrets.token_hex(16).encode()
        seat = self._seats[key] = Seat(self._make(), self._clock())
        return key, seat.session

    def find(self, key: bytes | None) -> Any | None:
        """The session of `key`, if it is still there; it is in use from now on."""
        self._drop_idle()
        if key is None or (seat := self._seats.get(key)) is None:
            return None
        seat.used_at = self._clock()
        self._seats.move_to_end(key)
        return seat.session

    def close(self, key: bytes | None) -> None:
        if key is not None:
            self._seats.pop(key, None)

    def __len__(self) -> int:
        return len(self._seats)

    def _drop_idle(self) -> None:
        before = self._clock() - self._idle_s
        while self._seats and next(iter(self._seats.values())).used_at < before:
            self._seats.popitem(last=False)


def lost_session(server: str, instead: str) -> EngineUnavailable:
    """For a client whose session is not here; `instead` says what to do."""
    message = (
        f"{server}: this session is not here: it was idle for too long, made room for others, or began in "
        f"another replica. {instead}"
    )
    return EngineUnavailable(message, retry_after_s=0)


def cookie_name(server: str) -> bytes:
    """The cookie that holds the key of a session at `server`."""
    return b"local_vllm_session_" + hashlib.blake2b(server.encode(), digest_size=6).hexdigest().encode()


def read_cookies(header: bytes | None) -> dict[bytes, bytes]:
    """The cookies of a request's header."""
    pairs = (pair.strip().partition(b"=") for pair in (header or b"").split(b";"))
    return {name: value for name, _, value in pairs if name}


def set_cookie(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The header that gives a cookie to a client."""
    return b"set-cookie", b"%s=%s; Path=/; HttpOnly; SameSite=Lax" % (name, value)
