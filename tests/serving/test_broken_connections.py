"""Which requests are sent a second time when a connection breaks: those that no engine can have read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from servers_under_test import SECRET
from stand_in_engine import MODEL, StandInEngine

from local_vllm.errors import UpstreamError
from local_vllm.protocol import ChatCall
from local_vllm.serving.admission import Admission
from local_vllm.serving.client import ConnectionBroken, EngineAnswer, EngineClient, Timeouts
from local_vllm.serving.dispatch import Dispatcher, Patience
from local_vllm.serving.endpoints import FixedEndpoints, Ready
from local_vllm.serving.http_transport import HTTPTransport
from local_vllm.serving.requests import Limits, Request
from local_vllm.serving.sessions import Destination, Sessions

pytestmark = pytest.mark.timeout(20)

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
HALF = WHOLE[:-1]


class RawEngine:
    """Answers each request with the next of `answers`, None being the end of the connection; after the last of them
    it is dead, and nobody listens any more.
    """

    def __init__(self, *answers: bytes | None, dies: bool = False) -> None:
        self.asked = 0
        self._answers = list(answers)
        self._dies = dies

    async def start(self) -> str:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _request(reader):
            assert head
            self.asked += 1
            answer = self._answers.pop(0)
            if self._dies and not self._answers:
                self._listener.close()
            writer.write(answer or b"")
            if answer != WHOLE:
                break
        writer.close()

    def close(self) -> None:
        self._listener.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    await reader.readexactly(2)
    return head


@pytest.fixture
async def transport() -> AsyncIterator[HTTPTransport]:
    transport = HTTPTransport()
    yield transport
    await transport.close()


async def post(transport: HTTPTransport, url: str) -> EngineAnswer:
    return await transport.post(url, b"{}", (), Timeouts())


async def stream(transport: HTTPTransport, url: str) -> bytes:
    async with transport.stream(url, b"{}", (), Timeouts()) as answer:
        return b"".join([piece async for piece in answer.chunks])


@pytest.mark.parametrize("call", [post, stream])
async def test_a_connection_that_was_dropped_while_idle_is_replaced(transport: HTTPTransport, call) -> None:
    engine = RawEngine(WHOLE, None, WHOLE)
    url = await engine.start()
    await call(transport, url)
    await call(transport, url)
    assert engine.asked == 3
    engine.close()


@pytest.mark.parametrize("call", [post, stream])
async def test_what_a_new_connection_has_carried_is_not_sent_again(transport: HTTPTransport, call) -> None:
    engine = RawEngine(None, WHOLE)
    url = await engine.start()
    with pytest.raises(ConnectionBroken):
        await call(transport, url)
    assert engine.asked == 1
    engine.close()


@pytest.mark.parametrize("call", [post, stream])
async def test_an_answer_that_breaks_off_half_way_is_not_asked_for_again(transport: HTTPTransport, call) -> None:
    engine = RawEngine(WHOLE, HALF, WHOLE)
    url = await engine.start()
    await call(transport, url)
    with pytest.raises(ConnectionBroken):
        await call(transport, url)
    assert engine.asked == 2
    engine.close()


@pytest.mark.parametrize("call", [post, stream])
async def test_an_engine_that_dies_of_a_request_broke_its_connection(transport: HTTPTransport, call) -> None:
    engine = RawEngine(WHOLE, None, dies=True)
    url = await engine.start()
    await call(transport, url)
    with pytest.raises(ConnectionBroken):
        await call(transport, url)


async def test_a_request_that_an_engine_dies_of_goes_to_no_other(one_engine: StandInEngine) -> None:
    dying = RawEngine(WHOLE, None, dies=True)
    source = FixedEndpoints([await dying.start(), one_engine.base_url], "EMPTY", MODEL)
    client = EngineClient(HTTPTransport())
    dispatcher = Dispatcher(source, Sessions("p", SECRET), Admission("p", 10), Patience())

    async def ask(call: ChatCall, to: Destination) -> EngineAnswer:
        return await client.post(to.endpoint, call.path, call.body)

    state = source.current()
    assert isinstance(state, Ready)
    only_first = Ready(state.endpoints[:1])
    request = Request({"headers": []}, None, Limits())  # type: ignore[arg-type]
    await dispatcher.send(only_first, request, ChatCall(b"{}", False, None), ask)
    with pytest.raises(UpstreamError) as failure:
        await dispatcher.send(only_first, request, ChatCall(b"{}", False, None), ask)
    assert failure.value.code == "engine_connection_lost"
    assert not one_engine.asked
    await client.close()
