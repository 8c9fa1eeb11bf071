"""Fetches what a request names and does not hold: stored responses and their items, and audio files."""

from __future__ import annotations

import asyncio

from msgspec import Raw

from local_vllm.errors import RequestError
from local_vllm.protocol.stored import find_items, items_of, response_of
from local_vllm.protocol.supplied import Supplied, Wanted
from local_vllm.serving.audio import AudioFolder
from local_vllm.serving.response_store import ResponseStore

# As many stored responses are fetched at once for the items that a request refers to.
TOGETHER = 16


class Lookups:
    """What the requests of one model server may refer to."""

    def __init__(self, store: ResponseStore, audio: AudioFolder) -> None:
        self._store = store
        self._audio = audio

    async def supply(self, wanted: Wanted) -> Supplied:
        """Raises RequestError when something is not here, or not to be read."""
        earlier, items, audio = await asyncio.gather(
            self._earlier(wanted.previous_response_id),
            self._items(wanted.item_ids),
            self._audio.urls(wanted.audio_paths),
        )
        return Supplied(earlier, items, audio)

    async def _earlier(self, response_id: str | None) -> tuple[Raw, ...]:
        if response_id is None:
            return ()
        chain = await self._store.chain(response_id)
        if not chain:
            raise _no_previous(response_id)
        if (gone := chain[0].previous) is not None:
            raise _no_previous(gone)
        return tuple(items_of(chain))

    async def _items(self, item_ids: tuple[str, ...]) -> dict[str, Raw]:
        """Those that are here, up to the first response that is not; a reference to another is refused where it
        stands.
        """
        wanted: dict[str, set[str]] = {}
        for item_id in item_ids:
            if response_id := response_of(item_id):
                wanted.setdefault(response_id, set()).add(item_id)
        found: dict[str, Raw] = {}
        response_ids = list(wanted)
        for start in range(0, len(response_ids), TOGETHER):
            batch = response_ids[start : start + TOGETHER]
            for response_id, stored in zip(batch, await asyncio.gather(*map(self._store.get, batch)), strict=True):
                if stored is None:
                    return found
                found |= find_items(stored, wanted[response_id])
        return found


def _no_previous(response_id: str) -> RequestError:
    return RequestError(
        f"Previous response with id '{response_id}' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )
