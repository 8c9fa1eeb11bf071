"""A model server as far as one of its layers, on a bare uvicorn: what one layer takes more than the one before is its price.

    python -m benchmarks.layer_server PORT ENGINE_URL constant|client|conversion|conversions
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping

import uvicorn

from benchmarks.targets import CONVERSIONS
from local_vllm.config.schema import VLLMModelSettings
from local_vllm.protocol import ChatCall, Converter
from local_vllm.serving.asgi import Receive, Scope, Send, send_whole
from local_vllm.serving.client import Timeouts
from local_vllm.serving.http_transport import HTTPTransport
from local_vllm.serving.replica import settle_memory
from local_vllm.serving.replies import Reply
from local_vllm.serving.request_settings import converter_settings

MODEL = "stand-in"
HEADERS = (("Content-Type", "application/json"), ("Authorization", "Bearer EMPTY"))
# About as long as a one-shot answer.
CONSTANT = b'{"status": "completed", "output": [{"type": "message", "text": "%b"}]}' % (b"x" * 1800)

Layer = Callable[[bytes], Awaitable[bytes]]


class Layers:
    def __init__(self, engine_url: str) -> None:
        settings = VLLMModelSettings(base_url=f"{engine_url}/v1", model=MODEL)
        self._url = f"{engine_url}/v1/chat/completions"
        self._converter = Converter(converter_settings(settings))
        self._transport = HTTPTransport()

    def named(self) -> Mapping[str, Layer]:
        return {
            "constant": self.constant,
            "client": self.ask,
            "conversion": lambda body: self.converted(body, times=1),
            "conversions": lambda body: self.converted(body, times=CONVERSIONS),
        }

    async def constant(self, body: bytes) -> bytes:
        return CONSTANT

    async def converted(self, body: bytes, times: int) -> bytes:
        calls: list[ChatCall] = [self._converter.to_chat(body, MODEL) for _ in range(times)]
        answer = await self.ask(calls[-1].body)
        return [self._converter.to_response(call, answer).body for call in calls][-1]

    async def ask(self, body: bytes) -> bytes:
        return (await self._transport.post(self._url, body, HEADERS, Timeouts())).body


def application(layer: Layer) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            is_asked = scope["method"] == "POST"
            body = await layer(await _body(receive)) if is_asked else b"{}"
            await send_whole(Reply(200, body), send, scope)

    return answer


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def main() -> None:
    port, engine_url, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    served = application(Layers(engine_url).named()[name])
    settle_memory()
    uvicorn.run(
        served,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
