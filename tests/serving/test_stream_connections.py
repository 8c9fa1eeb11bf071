"""The connections to engines over which streams come: used again, and replaced when they were dropped."""

from __future__ import annotations

import asyncio

import openai
import pytest
from chat_events import said
from servers_under_test import model_server, over
from stand_in_engine import StandInEngine, serving

pytestmark = pytest.mark.timeout(30)


class Connections:
    """A raw engine: answers each request with a whole stream, and counts connections. After `drop_after`
    answers it closes a connection when it is asked again, as a server does that had given up on it.
    """

    def __init__(self, drop_after: int) -> None:
        self.made = 0
        self._drop_after = drop_after

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made += 1
        answered = 0
        while await self._request(reader):
            if answered == self._drop_after:
                break
            stream = b"".join(said("Hello"))
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                + b"%x\r\n%b\r\n" % (len(stream), stream)
            )
            await asyncio.sleep(0.05)  # [DONE] is not yet the end of the body
            writer.write(b"0\r\n\r\n")
            answered += 1
        writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
        return head


@pytest.mark.parametrize(("drop_after", "connections"), [(99, 1), (1, 3)], ids=["kept", "dropped"])
async def test_connections_are_used_again_and_replaced_when_dropped(
    drop_after: int, connections: int
) -> None:
    engine = Connections(drop_after)
    listener = await asyncio.start_server(engine, "127.0.0.1", 0)
    stand_in = StandInEngine()
    stand_in.base_url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    async with listener, serving(model_server(over(stand_in))) as address:
        for _ in range(3):
            async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="EMPTY", max_retries=0, timeout=10) as client:
                events = [event async for event in await client.responses.create(model="m", input="Hi", stream=True)]
            assert events[-1].type == "response.completed"
        assert engine.made == connections
        listener.close()
