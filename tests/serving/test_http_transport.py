"""Every way in which HTTP/1.1 lets an answer arrive, over real sockets, and what becomes of the connection then."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from local_vllm.serving import http_connection, http_transport
from local_vllm.serving.client import ConnectionBroken, EngineAnswer, NoConnection, Timeouts
from local_vllm.serving.http_transport import HTTPTransport

pytestmark = pytest.mark.timeout(30)

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
Answering = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class RawServer:
    """Hands each request, head and body, to `answering`; keeps what was asked, and counts connections."""

    def __init__(self, answering: Answering) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.left = asyncio.Event()
        self.url = ""
        self._answering = answering

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                request = head + await reader.readexactly(length)
                self.requests.append(request)
                await self._answering(request, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(answering: Answering, host: str = "127.0.0.1") -> AsyncIterator[RawServer]:
    server = RawServer(answering)
    listener = await asyncio.start_server(server.serve, host, 0)
    address, port = listener.sockets[0].getsockname()[:2]
    server.url = f"http://[{address}]:{port}/v1/x" if ":" in address else f"http://{address}:{port}/v1/x"
    try:
        yield server
    finally:
        listener.close()


def says(*pieces: bytes) -> Answering:
    """Sends the same to every request, with a pause between the pieces."""

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    return answer


def says_and_closes(*pieces: bytes) -> Answering:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        await says(*pieces)(request, writer)
        writer.close()

    return answer


@pytest.fixture
async def transport() -> AsyncIterator[HTTPTransport]:
    transport = HTTPTransport()
    yield transport
    await transport.close()


async def post(transport: HTTPTransport, url: str, body: bytes = b"{}", timeouts: Timeouts = Timeouts()) -> EngineAnswer:
    return await transport.post(url, body, (("Authorization", "Bearer k"),), timeouts)


async def streamed(transport: HTTPTransport, url: str) -> list[bytes]:
    async with transport.stream(url, b"{}", (), Timeouts()) as answer:
        return [piece async for piece in answer.chunks]


WAYS = {
    "a length": says(OK + b"Content-Length: 7\r\n\r\n", b'{"a', b'":1}'),
    "one byte at a time": says(*(bytes([byte]) for byte in OK + b'Content-Length: 7\r\n\r\n{"a":1}')),
    "chunks": says(CHUNKED, b'3\r\n{"a\r\n', b'4;note=x\r\n":1}\r\n', b"0\r\n\r\n"),
    "chunks with a trailer": says(CHUNKED + b'7\r\n{"a":1}\r\n0\r\nX-Sum: 1\r\n\r\n'),
    "the end of the connection": says_and_closes(OK + b"\r\n", b'{"a', b'":1}'),
    "HTTP/1.0": says_and_closes(b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"a":1}'),
    "a promise to continue first": says(b"HTTP/1.1 100 Continue\r\n\r\n", OK + b'Content-Length: 7\r\n\r\n{"a":1}'),
}


@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_is_whole_whichever_way_it_comes(transport: HTTPTransport, way: str) -> None:
    async with serving(WAYS[way]) as server:
        for _ in range(2):
            assert await post(transport, server.url) == EngineAnswer(200, "application/json", b'{"a":1}')
            assert b"".join(await streamed(transport, server.url)) == b'{"a":1}'


async def test_what_is_sent_is_the_request_as_it_was_given(transport: HTTPTransport) -> None:
    async with serving(WAYS["a length"]) as server:
        await post(transport, f"{server.url}/ä b%2Fc?q=1 2", b'{"x": "100%d"}')
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    assert first == b"POST /v1/x/%C3%A4%20b%2Fc?q=1%202 HTTP/1.1"
    assert set(lines) == {
        b"Host: " + server.url.split("/")[2].encode(), b"Authorization: Bearer k", b"Content-Length: 14",
    }  # fmt: skip
    assert body == b'{"x": "100%d"}'


async def test_status_and_retry_after_of_a_refusal_come_back(transport: HTTPTransport) -> None:
    refusal = b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nno"
    async with serving(says(refusal)) as server:
        assert await post(transport, server.url) == EngineAnswer(503, "text/plain", b"no", "7")


async def test_one_connection_carries_one_request_after_another(transport: HTTPTransport) -> None:
    async with serving(WAYS["chunks"]) as server:
        for _ in range(5):
            await post(transport, server.url)
            await streamed(transport, server.url)
        assert server.connections == 1
        await asyncio.gather(*(post(transport, server.url) for _ in range(5)))
        assert server.connections == 5


async def test_a_connection_that_the_engine_ends_is_not_used_again(transport: HTTPTransport) -> None:
    async with serving(says(OK + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")) as server:
        for _ in range(3):
            await post(transport, server.url)
        assert server.connections == 3


async def test_a_connection_that_is_not_used_is_closed(transport: HTTPTransport, monkeypatch) -> None:
    monkeypatch.setattr(http_transport, "KEEP_ALIVE_S", 0.1)
    async with serving(WAYS["a length"]) as server:
        await post(transport, server.url)
        assert not server.left.is_set()
        await asyncio.wait_for(server.left.wait(), 2)
        await post(transport, server.url)
        assert server.connections == 2


NO_ANSWERS = {
    "no HTTP": (says(b"220 mail.example.com ESMTP\r\n\r\n"), "no HTTP"),
    "headers without end": (says(OK + b"X: " + b"y" * (70 << 10)), "too long"),
    "two lengths": (says(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), "no HTTP"),
    "a bad chunk": (says(CHUNKED + b"zz\r\n"), "no HTTP"),
    "half a body": (says_and_closes(OK + b"Content-Length: 9\r\n\r\n{}"), "closed"),
    "half a chunk": (says_and_closes(CHUNKED + b"9\r\n{}"), "closed"),
    "half a head": (says_and_closes(OK), "closed"),
    "another protocol": (says(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"), ""),
}


@pytest.mark.parametrize("kind", NO_ANSWERS)
@pytest.mark.parametrize("call", [post, streamed])
async def test_what_is_no_whole_answer_broke_its_connection(transport: HTTPTransport, call, kind: str) -> None:
    answering, told = NO_ANSWERS[kind]
    async with serving(answering) as server:
        with pytest.raises(ConnectionBroken, match=told):
            await call(transport, server.url)
        assert server.connections == 1


async def test_more_than_one_answer_to_one_request_ends_the_connection(transport: HTTPTransport) -> None:
    twice = OK + b"Content-Length: 2\r\n\r\n{}"
    async with serving(says(twice + twice)) as server:
        for _ in range(3):
            try:
                assert (await post(transport, server.url)).body == b"{}"
            except ConnectionBroken:
                pass
        assert server.connections == 3


async def test_nobody_listens(transport: HTTPTransport) -> None:
    async with serving(WAYS["a length"]) as server:
        url = server.url
    with pytest.raises(NoConnection, match="refused"):
        await post(transport, url)
    with pytest.raises(NoConnection):
        await post(transport, "http://no-such-host.invalid/v1")


async def test_an_answer_that_takes_too_long_ends_its_connection(transport: HTTPTransport) -> None:
    async with serving(says()) as server:
        with pytest.raises(TimeoutError):
            await post(transport, server.url, timeouts=Timeouts(total_s=0.1))
        await asyncio.wait_for(server.left.wait(), 2)
    async with serving(says(CHUNKED, b"2\r\n{}\r\n")) as server:
        with pytest.raises(TimeoutError):
            async with transport.stream(server.url, b"{}", (), Timeouts(total_s=0.2)) as answer:
                async for piece in answer.chunks:
                    assert piece == b"{}"


async def test_a_call_that_is_cancelled_closes_its_connection(transport: HTTPTransport) -> None:
    async with serving(says()) as server:
        call = asyncio.create_task(post(transport, server.url))
        while not server.requests:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(server.left.wait(), 2)


async def test_a_stream_that_is_left_closes_its_connection(transport: HTTPTransport) -> None:
    async with serving(says(CHUNKED, *[b"2\r\n{}\r\n"] * 500)) as server:
        async with transport.stream(server.url, b"{}", (), Timeouts()) as answer:
            assert await anext(answer.chunks) == b"{}"
        await asyncio.wait_for(server.left.wait(), 2)


async def test_a_stream_that_nobody_takes_is_not_read_further(transport: HTTPTransport, monkeypatch) -> None:
    monkeypatch.setattr(http_connection, "MAX_WAITING_BYTES", 1 << 16)
    sent, size = 0, 64 << 20

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        sent = 0
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * (1 << 20))
            await writer.drain()
            sent += 1 << 20

    async with serving(answer) as server:
        async with transport.stream(server.url, b"{}", (), Timeouts()) as stream:
            await asyncio.sleep(0.5)
            assert sent < size // 2
            assert sum([len(piece) async for piece in stream.chunks]) == size
        assert b"".join(await streamed(transport, server.url)) == b"x" * size
        assert server.connections == 1


async def test_a_header_cannot_hold_another(transport: HTTPTransport) -> None:
    async with serving(WAYS["a length"]) as server:
        with pytest.raises(NoConnection, match="Authorization"):
            await transport.post(server.url, b"{}", (("Authorization", "Bearer k\r\nX: y"),), Timeouts())
        assert not server.requests


async def test_names_and_addresses_of_both_kinds_are_reached(transport: HTTPTransport) -> None:
    async with serving(WAYS["a length"], "::1") as server:
        assert (await post(transport, server.url)).status == 200
        assert b"Host: [::1]:" in server.requests[0]
    async with serving(WAYS["a length"]) as server:
        assert (await post(transport, server.url.replace("127.0.0.1", "localhost"))).status == 200


async def test_a_certificate_that_nobody_vouches_for_is_no_connection(transport: HTTPTransport, certificate) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = RawServer(WAYS["a length"])
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{listener.sockets[0].getsockname()[1]}/v1/x"
    with pytest.raises(NoConnection):
        await post(transport, url)
    trusting = ssl.create_default_context(cafile=certificate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_transport, "_tls", lambda: trusting)
        assert (await post(transport, url)).body == b'{"a":1}'
        assert b"".join(await streamed(transport, url)) == b'{"a":1}'
    listener.close()


@pytest.fixture
def certificate(tmp_path):
    """A certificate for localhost that signs itself, with its key."""
    import subprocess

    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", chain],
        check=True, capture_output=True,
    )  # fmt: skip
    chain.write_bytes(chain.read_bytes() + key.read_bytes())
    return chain
