"""How many requests one server of a replica takes at once, and how they are shared among sessions when they are many.

Whoever is one too many is told at once when to ask again. What waits for a token waits in the engine's queue.
"""

from __future__ import annotations

import random

from local_vllm.serving.replies import Refused, overloaded_reply
from local_vllm.serving.requests import Request
from local_vllm.serving.sessions import SESSION_HEADER

MAX_IN_FLIGHT = 8192
# The key of a request's scope that tells the rollouts of this process apart.
ROLLOUT = "local_vllm.rollout"
# Clients that were refused together should not come back together.
RETRY_AFTER_S = (1, 3)


class Admission:
    """The first half of `limit` places is for whoever comes. While more are taken, a session gets another one only if it
    holds less than its equal share of half of them.
    """

    def __init__(self, server: str, limit: int = MAX_IN_FLIGHT) -> None:
        self._server = server
        self._limit = limit
        self._by_session: dict[bytes, int] = {}
        self.in_flight = 0

    def enter(self, request: Request) -> None:
        """Take a place, until the request is closed. Raises Refused (429) when there is none."""
        if self.in_flight >= self._limit:
            raise self._refused(f"{self.in_flight} requests are in flight, as many as it takes at once")
        self.in_flight += 1
        request.place = Place(self)

    def count(self, request: Request, hint: str | None) -> None:
        """Say whose the request is, now that it has been read. Raises Refused (429) when that session holds too many."""
        place = request.place
        if not isinstance(place, Place) or place.session is not None:
            return
        session = _session(request, hint)
        held = self._by_session.get(session, 0)
        sessions = len(self._by_session)
        if 2 * self.in_flight > self._limit and held and held >= self._limit // (2 * sessions):
            raise self._refused(
                f"{self.in_flight} requests of {sessions} sessions are in flight, and {held} of them are of this session"
            )
        self._by_session[session] = held + 1
        place.session = session

    def leave(self, session: bytes | None) -> None:
        self.in_flight -= 1
        if session is None:
            return
        if (left := self._by_session[session] - 1) > 0:
            self._by_session[session] = left
        else:
            del self._by_session[session]

    def _refused(self, why: str) -> Refused:
        message = f"{self._server}: {why} (max_requests_in_flight is {self._limit}): ask again later."
        return Refused(overloaded_reply(message, random.randint(*RETRY_AFTER_S)))


class Place:
    """One request's place; `session` is None until it is known whose it is."""

    __slots__ = ("_admission", "session")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.session: bytes | None = None

    def leave(self) -> None:
        self._admission.leave(self.session)


def _session(request: Request, hint: str | None) -> bytes:
    """The session's name; requests without one are told apart by their keys alone. A rollout is one by itself."""
    rollout: bytes | None = request.scope.get(ROLLOUT)
    if rollout is not None:
        return b"rollout " + rollout
    name = request.headers.get(SESSION_HEADER) or (hint.encode() if hint else None)
    return b"session " + name if name else b"key " + request.headers.get(b"authorization", b"")
