"""Where answered requests are kept, so that a later one can go on from them: in memory, in a file, or nowhere.
How a file is written is `sqlite_store`'s, and a store that several processes share `shared_store`'s; what a
stored response holds is the protocol's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from local_vllm.protocol.stored import Stored
from local_vllm.serving.memory_store import MemoryStore
from local_vllm.serving.sqlite_store import SqliteStore


@dataclass(frozen=True, slots=True)
class StoreSetting:
    """`kind` is `memory`, `none`, or the path of an SQLite file; the oldest go when there is more than
    `max_bytes`.
    """

    kind: str = "memory"
    max_bytes: int = 256 << 20


class ResponseStore(Protocol):
    """Keeps responses by their ids. `put` returns at once: no answer waits until it is kept."""

    def put(self, stored: Stored) -> None: ...

    async def chain(self, response_id: str) -> list[Stored]:
        """A response and all that it continues, the oldest first; empty when it is not here.

        Where one that was continued is gone, the first of the list has a `previous`.
        """

    async def get(self, response_id: str) -> Stored | None: ...

    async def delete(self, response_id: str) -> bool:
        """Whether it was there."""

    async def close(self) -> None: ...


class NoStore:
    """Keeps nothing."""

    def put(self, stored: Stored) -> None:
        return None

    async def chain(self, response_id: str) -> list[Stored]:
        return []

    async def get(self, response_id: str) -> Stored | None:
        return None

    async def delete(self, response_id: str) -> bool:
        return False

    async def close(self) -> None:
        return None


class Stores(Protocol):
    """Gives the store for a setting, the same one each time."""

    def store(self, setting: StoreSetting) -> ResponseStore: ...


@dataclass(frozen=True, slots=True)
class LocalStores:
    """The stores of a process that shares them with no other: one for each setting."""

    _open: dict[StoreSetting, ResponseStore] = field(default_factory=dict)

    def store(self, setting: StoreSetting) -> ResponseStore:
        if setting not in self._open:
            self._open[setting] = open_store(setting)
        return self._open[setting]


def open_store(setting: StoreSetting) -> ResponseStore:
    """The store itself, in this process.

    Raises:
        ConfigError: an SQLite file cannot be opened.
    """
    if setting.kind == "none":
        return NoStore()
    if setting.kind == "memory":
        return MemoryStore(setting.max_bytes)
    return SqliteStore(setting.kind, setting.max_bytes)


def check_file(setting: StoreSetting) -> None:
    """Raises ConfigError when the setting names a file that cannot be used."""
    if setting.kind not in ("memory", "none"):
        SqliteStore(setting.kind, setting.max_bytes).end()
