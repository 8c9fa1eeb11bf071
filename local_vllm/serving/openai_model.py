"""`OpenAIModel`: passes requests through to another Responses API, with its key, its model's name and the settings
of the server. Its responses are stored there.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from local_vllm.config.schema import OpenAIModelSettings
from local_vllm.protocol import Answer as Converted
from local_vllm.protocol import ChatCall
from local_vllm.protocol.calls import CHAT, RESPONSES
from local_vllm.protocol.errors import engine_failure, read_engine_error
from local_vllm.protocol.relayed import RelayedRequests
from local_vllm.serving.asgi import Answer
from local_vllm.serving.endpoints import FixedEndpoints
from local_vllm.serving.model_server import ModelServer
from local_vllm.serving.replica import Replica
from local_vllm.serving.requests import Request
from local_vllm.serving.response_store import NoStore

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class PassThrough:
    """The converter of a server that converts nothing: failures too are the other API's own bytes."""

    def __init__(self, requests: RelayedRequests) -> None:
        self._requests = requests

    def to_responses(self, body: bytes, model: str) -> ChatCall:
        return self._requests.call(body, model, RESPONSES)

    def chat_passthrough(self, body: bytes, model: str) -> ChatCall:
        return self._requests.call(body, model, CHAT)

    def to_response(self, call: ChatCall, answer: bytes) -> Converted:
        return Converted(200, answer)

    def with_limit_that_fits(self, call: ChatCall, status: int, answer: bytes) -> None:
        """What is refused there is refused here."""

    def from_failure(self, call: ChatCall, status: int, answer: bytes) -> Converted:
        if _is_error_object(answer):
            return Converted(status, answer)
        return Converted(status, engine_failure(status, read_engine_error(answer), responses=False))


class OpenAIModel(ModelServer):
    """In front of an API that knows Responses already; `base_url` may name several of them."""

    def __init__(self, name: str, settings: OpenAIModelSettings, replica: Replica) -> None:
        key = settings.api_key.get_secret_value()
        super().__init__(
            name,
            settings.model,
            FixedEndpoints(settings.base_url, key, settings.model),
            PassThrough(RelayedRequests(settings.extra_body, settings.sampling_overrides)),
            replica.client(settings.default_headers),
            sessions=replica.sessions(name),
            limits=replace(replica.limits, max_body_bytes=settings.max_request_mib << 20),
            store=NoStore(),
            native=True,
            max_in_flight=settings.max_requests_in_flight,
            replica=replica.name,
        )

    async def responses(self, request: Request, body: bytes) -> Answer:
        return await self._forward(request, body, self._converter.to_responses)


def _is_error_object(answer: bytes) -> bool:
    try:
        return "error" in _fields.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
