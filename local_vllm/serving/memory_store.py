"""A response store in this process's memory, and how a store follows a chain of responses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from local_vllm.protocol.stored import Stored
from local_vllm.serving.replies import logger

# What Python needs for one entry besides its bytes.
ENTRY_BYTES = 500


class MemoryStore:
    """Keeps what was used last, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Stored] = OrderedDict()

    def put(self, stored: Stored) -> None:
        cost = _cost(stored)
        if cost > self._max_bytes:
            logger.warning("A response of %d bytes is larger than the response store.", stored.size)
            return
        self._remove(stored.id)
        self._kept[stored.id] = stored
        self._bytes += cost
        while self._bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _cost(oldest)

    async def chain(self, response_id: str) -> list[Stored]:
        return chain_of(response_id, self._use)

    async def get(self, response_id: str) -> Stored | None:
        return self._use(response_id)

    async def delete(self, response_id: str) -> bool:
        return self._remove(response_id)

    async def close(self) -> None:
        self._kept.clear()
        self._bytes = 0

    def _use(self, response_id: str) -> Stored | None:
        if response_id in self._kept:
            self._kept.move_to_end(response_id)
        return self._kept.get(response_id)

    def _remove(self, response_id: str) -> bool:
        stored = self._kept.pop(response_id, None)
        if stored is None:
            return False
        self._bytes -= _cost(stored)
        return True


def chain_of(response_id: str, find: Callable[[str], Stored | None]) -> list[Stored]:
    """Follows `previous` from the last response to the first. A circle, which no server makes, ends it."""
    found: list[Stored] = []
    seen: set[str] = set()
    wanted: str | None = response_id
    while wanted is not None and wanted not in seen and (stored := find(wanted)) is not None:
        seen.add(wanted)
        found.append(stored)
        wanted = stored.previous
    return found[::-1]


def _cost(stored: Stored) -> int:
    return stored.size + ENTRY_BYTES
