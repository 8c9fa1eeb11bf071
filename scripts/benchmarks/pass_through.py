"""The measure of everything: a proxy that hands the bytes of a request to an engine, and the engine's bytes back.

    python -m benchmarks.pass_through PORT ENGINE_URL
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

JSON = {"content-type": "application/json"}
MAX_BODY_BYTES = 64 << 20


class PassThrough:
    def __init__(self, engine_url: str) -> None:
        self._engine_url = engine_url

    async def session(self, app: web.Application) -> AsyncIterator[None]:
        connector, forever = TCPConnector(limit=0), ClientTimeout(total=None)
        async with ClientSession(connector=connector, timeout=forever) as self._session:
            yield

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        async with self._session.post(self._engine_url + request.path, data=body, headers=JSON) as answer:
            if answer.content_type != "text/event-stream":
                return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)
            stream = web.StreamResponse(status=answer.status, headers={"content-type": "text/event-stream"})
            await stream.prepare(request)
            async for piece in answer.content.iter_any():
                await stream.write(piece)
            await stream.write_eof()
            return stream


def main() -> None:
    port, engine_url = int(sys.argv[1]), sys.argv[2]
    proxy = PassThrough(engine_url)
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.cleanup_ctx.append(proxy.session)
    app.router.add_get("/health", proxy.health)
    app.router.add_post("/v1/chat/completions", proxy.answer)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main()
