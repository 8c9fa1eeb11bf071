"""A stream of completions on its way to a client who asked for one of chat: each event as soon as it is there."""

from __future__ import annotations

from collections.abc import AsyncIterator

from local_vllm.protocol.completion_answers import ChatChunks
from local_vllm.serving.streams import EventReader


async def as_chat_stream(pieces: AsyncIterator[bytes], body: bytes) -> AsyncIterator[bytes]:
    """One piece for each that holds events; `body` is what the engine was asked. Raises what reading raises."""
    reader, chunks = EventReader(), ChatChunks(body)
    async for piece in pieces:
        if found := reader.feed(piece):
            yield _events(found, chunks)
    if found := reader.rest():
        yield _events(found, chunks)


def _events(found: list[bytes], chunks: ChatChunks) -> bytes:
    return b"".join([b"data: %b\n\n" % chunks.data(payload) for payload in found])
