"""Which endpoint, and which data-parallel rank behind it, a request goes to.

A session sticks to one of them, so that its prefix is found in that cache. The assignment travels with the
client, in a signed cookie, or follows from the session's name: replicas agree and share nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from local_vllm.serving.endpoints import Endpoint, Ready
from local_vllm.serving.replies import Headers

SESSION_HEADER = b"x-session-id"
# Queues differ by chance: a new session keeps its turn unless so many more requests wait there than elsewhere.
QUEUE_DIFFERENCE = 16


@dataclass(frozen=True, slots=True)
class Destination:
    """Where one request goes; `rank` is None where there is one only. `headers` go back to the client."""

    endpoint: Endpoint
    rank: int | None = None
    headers: Headers = ()


class Sessions:
    """Chooses destinations for the requests of one model server.

    `secret` signs the cookies and is the same for all replicas of a deployment. `first` is where this replica
    begins to count, so that several of them do not all begin at the same endpoint.
    """

    def __init__(self, server: str, secret: bytes, *, first: int = 0) -> None:
        self._cookies = _Cookies(server, secret)
        self._turn = first
        self._alone: tuple[tuple[Endpoint, ...], Destination] | None = None

    def choose(self, there: Ready, headers: Mapping[bytes, bytes], hint: str | None) -> Destination:
        """The session's name decides (`x-session-id`, then `hint`), then its cookie; without any it is new.

        The names come first since they are narrower: an HTTP client keeps one cookie for all it does.
        """
        endpoints = there.endpoints
        if self._alone is not None and self._alone[0] is endpoints:
            return self._alone[1]
        if len(endpoints) == 1 and endpoints[0].ranks == 1 and not there.down:
            self._alone = (endpoints, Destination(endpoints[0]))
            return self._alone[1]
        name = headers.get(SESSION_HEADER) or (hint.encode() if hint else None)
        if name is not None:
            return _by_name(name, endpoints)
        return self._cookies.read(headers.get(b"cookie"), endpoints) or self._new(there)

    def _new(self, there: Ready) -> Destination:
        """The next in turn of those whose queue is not much longer than the shortest."""
        shortest = min((_queue(there, number, rank) for number, rank in _numbered(there)), default=0)
        while True:
            number, rank = self._next(there.endpoints)
            if _queue(there, number, rank) <= shortest + QUEUE_DIFFERENCE:
                endpoint = there.endpoints[number]
                return _destination(endpoint, rank, (self._cookies.write(endpoint, rank),))

    def _next(self, endpoints: tuple[Endpoint, ...]) -> tuple[int, int]:
        """Endpoints in turn first, and the ranks behind each from one round to the next."""
        round_, number = divmod(self._turn, len(endpoints))
        self._turn += 1
        return number, round_ % endpoints[number].ranks


def _numbered(there: Ready) -> Iterator[tuple[int, int]]:
    for number, endpoint in enumerate(there.endpoints):
        for rank in range(endpoint.ranks):
            yield number, rank


def _queue(there: Ready, number: int, rank: int) -> int:
    """Requests that wait there; none where it is not known."""
    waiting = there.waiting[number] if there.waiting else ()
    return waiting[rank] if rank < len(waiting) else 0


class _Cookies:
    """`<endpoint>.<rank>.<signature>`, the endpoint as a digest of an address that clients need not know."""

    def __init__(self, server: str, secret: bytes) -> None:
        self._secret = secret
        self._server = server.encode()
        self._name = b"local_vllm_" + hashlib.blake2b(self._server, digest_size=6).hexdigest().encode()

    def write(self, endpoint: Endpoint, rank: int) -> tuple[bytes, bytes]:
        assignment = b"%s.%d" % (_key(endpoint), rank)
        value = b"%s=%s.%s" % (self._name, assignment, self._signature(assignment))
        return b"set-cookie", value + b"; Path=/; HttpOnly; SameSite=Lax"

    def read(self, header: bytes | None, endpoints: tuple[Endpoint, ...]) -> Destination | None:
        """The destination that the cookie names, if we signed it and the endpoint is still there."""
        value = _cookie(header, self._name) if header else None
        if value is None:
            return None
        assignment, _, signature = value.rpartition(b".")
        if not hmac.compare_digest(signature, self._signature(assignment)):
            return None
        key, _, rank = assignment.partition(b".")
        return _known(key, int(rank), endpoints)

    def _signature(self, assignment: bytes) -> bytes:
        digest = hmac.digest(self._secret, self._server + b"|" + assignment, "sha256")
        return digest[:16].hex().encode()


def _cookie(header: bytes, name: bytes) -> bytes | None:
    for pair in header.split(b";"):
        key, _, value = pair.strip().partition(b"=")
        if key == name:
            return value
    return None


def _known(key: bytes, rank: int, endpoints: tuple[Endpoint, ...]) -> Destination | None:
    for endpoint in endpoints:
        if _key(endpoint) == key and rank < endpoint.ranks:
            return _destination(endpoint, rank)
    return None


def _by_name(name: bytes, endpoints: tuple[Endpoint, ...]) -> Destination:
    """Rendezvous hashing: an endpoint that comes or goes moves no sessions but its own."""
    endpoint, rank = max(_slots(endpoints), key=lambda slot: _weight(name, *slot))
    return _destination(endpoint, rank)


def _slots(endpoints: tuple[Endpoint, ...]) -> Iterator[tuple[Endpoint, int]]:
    for endpoint in endpoints:
        for rank in range(endpoint.ranks):
            yield endpoint, rank


def _weight(name: bytes, endpoint: Endpoint, rank: int) -> bytes:
    return hashlib.blake2b(b"%s.%d|%s" % (_key(endpoint), rank, name), digest_size=8).digest()


def _destination(endpoint: Endpoint, rank: int, headers: Headers = ()) -> Destination:
    return Destination(endpoint, rank if endpoint.ranks > 1 else None, headers)


@lru_cache(maxsize=1024)
def _key(endpoint: Endpoint) -> bytes:
    return hashlib.blake2b(endpoint.base_url.encode(), digest_size=8).hexdigest().encode()
