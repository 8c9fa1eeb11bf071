"""Where the engines of a model server are: an endpoint, and the sources that say which are there right now.

How an engine of ours is asked is left to `engine_endpoints`, how somebody else's is looked after to
`watched_endpoints`; which endpoint a request takes, to `sessions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One engine: `base_url` ends in /v1, `model` is the name it serves, `ranks` its data-parallel size."""

    base_url: str
    api_key: str
    model: str
    ranks: int = 1

    @property
    def root_url(self) -> str:
        """The engine's address without /v1, where `/tokenize` and its like are."""
        return self.base_url.removesuffix("/v1")

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, model={self.model!r}, ranks={self.ranks})"


@dataclass(frozen=True, slots=True)
class Ready:
    """At least one engine answers. `waiting` has, for each of `endpoints`, how many requests wait at each of its
    ranks: empty for one that does not tell, and empty as a whole where nobody looks. `down` is how many others
    there are that cannot be reached now. `restarts` is how often an engine of ours was started again.
    """

    endpoints: tuple[Endpoint, ...]
    waiting: tuple[tuple[int, ...], ...] = ()
    down: int = 0
    restarts: int | None = None


@dataclass(frozen=True, slots=True)
class NotReady:
    """No engine answers. `state` is a word for programs (`starting`, `restarting`, `failed`), `message` one
    sentence for people, and `retry_after_s` is None when waiting will not help. `passes` says that an engine is being
    started again: a request may wait for that. `restarts` is as in Ready.
    """

    state: str
    message: str
    retry_after_s: int | None = 5
    passes: bool = False
    restarts: int | None = None


class EndpointSource(Protocol):
    """Says which engines are there. `current` is asked for every request: no I/O, no waiting."""

    def current(self) -> Ready | NotReady: ...

    def lost(self, endpoint: Endpoint) -> Ready | NotReady:
        """Nobody could be reached at `endpoint` just now; gives what is `current` after this news."""

    async def settled(self, within_s: float) -> Ready | NotReady:
        """What is `current` as soon as nothing of it `passes` any more, or after that time. Asked when it does only."""

    async def start(self) -> None:
        """Begin whatever keeps `current` up to date."""

    async def close(self) -> None:
        """End it."""


class FixedEndpoints:
    """Addresses that the configuration gives, and that nobody looks after."""

    def __init__(self, urls: Sequence[str], api_key: str, model: str) -> None:
        self._state = Ready(tuple(Endpoint(url.rstrip("/"), api_key, model) for url in urls))

    def current(self) -> Ready | NotReady:
        return self._state

    def lost(self, endpoint: Endpoint) -> Ready | NotReady:
        return self._state

    async def settled(self, within_s: float) -> Ready | NotReady:
        return self._state

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        return None
