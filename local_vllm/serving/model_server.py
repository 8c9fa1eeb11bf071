"""One model server: the Responses API and Chat Completions in front of the engines of one endpoint source.

What the bodies mean is left to the converter, where engines come from to the source, and HTTP to `asgi`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from local_vllm.protocol import ChatCall, Converter
from local_vllm.protocol.stored import to_keep
from local_vllm.protocol.supplied import NOTHING, Supplied, wanted
from local_vllm.serving.admission import MAX_IN_FLIGHT, Admission
from local_vllm.serving.asgi import Answer, HTTPApplication, Routes, Send
from local_vllm.serving.audio import AudioFolder
from local_vllm.serving.client import EngineClient
from local_vllm.serving.dispatch import Dispatcher, Patience
from local_vllm.serving.endpoints import Endpoint, EndpointSource, NotReady, Ready
from local_vllm.serving.engine_answers import EngineAnswers, Keep
from local_vllm.serving.lookups import Lookups
from local_vllm.serving.metrics import MetricsPage
from local_vllm.serving.native_responses import NativeResponses
from local_vllm.serving.replies import Reply, not_ready_reply
from local_vllm.serving.requests import Limits, Receive, Request, Scope
from local_vllm.serving.response_store import ResponseStore, StoreSetting, open_store
from local_vllm.serving.sessions import Sessions
from local_vllm.serving.stored_responses import StoredResponses
from local_vllm.serving.streams import as_asked
from local_vllm.serving.traffic import Traffic

# Keys that stand in every example and open nothing; any other is a secret.
OPEN_KEYS = ("", "dummy", "EMPTY")
REDACTED = "***"


class ModelServer:
    """An ASGI application. `model` is the name that clients see; the engines' own is in their endpoints."""

    def __init__(
        self,
        name: str,
        model: str,
        source: EndpointSource,
        converter: Converter,
        client: EngineClient,
        *,
        sessions: Sessions,
        limits: Limits = Limits(),
        store: ResponseStore | None = None,
        audio: AudioFolder = AudioFolder(),
        native: bool = False,
        patience: Patience = Patience(),
        max_in_flight: int = MAX_IN_FLIGHT,
        replica: str = "",
        direct: bool = False,
    ) -> None:
        """`native` engines speak the Responses API themselves, and keep their responses; `direct` ones speak it as
        this server does.

        `replica` names this process in metrics.
        """
        self.name = name
        self.model = model
        self.created = int(time.time())
        self._source = source
        self._converter = converter
        self._client = client
        self.limits = limits
        self.store = store or open_store(StoreSetting())
        self.native = NativeResponses(name, source, client, converter) if native else None
        self._lookups = Lookups(self.store, audio)
        self._direct = direct
        self.admission = Admission(name, max_in_flight)
        self.traffic = Traffic()
        self._metrics = MetricsPage([self], replica)
        self._dispatcher = Dispatcher(source, sessions, self.admission, patience)
        self._answers = EngineAnswers(name, converter, client)
        self._application = HTTPApplication(self._routes(), limits, self.start, self.close, self.traffic)

    def _routes(self) -> Routes:
        return {
            "/v1/responses": {"POST": self._post_responses},
            **stored_responses([self]).routes(),
            "/v1/chat/completions": {"POST": self._post_chat_completions},
            "/v1/models": {"GET": self._get_models},
            "/health": {"GET": self._get_health},
            "/metrics": {"GET": self._metrics.get},
            "/get_inner_vllm_config": {"GET": self._get_inner_vllm_config},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)

    async def start(self) -> None:
        await self._source.start()

    async def close(self) -> None:
        """Ends the background work of the source and of the store, and the client's connections."""
        await self._source.close()
        await self.store.close()
        await self._client.close()

    def state(self) -> Ready | NotReady:
        return self._source.current()

    async def responses(self, request: Request, body: bytes) -> Answer:
        """Answers a Responses request, whichever application its body was read by."""
        state = await self._dispatcher.admit(request)
        if isinstance(state, NotReady):
            return not_ready_reply(self.name, state)
        asked = self._converter.read(body)
        wants = wanted(asked)
        supplied = NOTHING
        if wants:
            supplied = await self._lookups.supply(wants)
            request.hold(sum(map(len, supplied.audio)))
        call = self._converter.convert(asked, state.endpoints[0].model, supplied)
        keep = lambda answer: self._keep(call, supplied, body, answer)  # noqa: E731
        if call.settled is not None:
            return self._settled(call, keep)
        answer = self._answers.streamed_response if call.stream else self._answers.whole_response
        return await self._dispatcher.send(state, request, call, lambda call, to: answer(call, to, keep))

    def _keep(self, call: ChatCall, supplied: Supplied, body: bytes, answer: bytes) -> None:
        """Hand a response to the store; it is written while nobody waits."""
        asked = call.asked
        if asked is not None and asked.store:
            previous = asked.request.previous_response_id
            self.store.put(to_keep(asked.response_id, previous, body, answer, supplied))

    def _settled(self, call: ChatCall, keep: Keep) -> Answer:
        answer: bytes = call.settled  # type: ignore[assignment]
        keep(answer)
        return as_asked(call, answer)

    async def chat_completions(self, request: Request, body: bytes) -> Answer:
        """Answers a Chat Completions request with the engine's own bytes, streamed or whole."""
        return await self._forward(request, body, self._converter.chat_passthrough)

    async def _forward(
        self, request: Request, body: bytes, prepare: Callable[[bytes, str], ChatCall]
    ) -> Answer:
        state = await self._dispatcher.admit(request)
        if isinstance(state, NotReady):
            return not_ready_reply(self.name, state)
        call = prepare(body, state.endpoints[0].model)
        pass_on = self._answers.stream_passed_on if call.stream else self._answers.passed_on
        return await self._dispatcher.send(state, request, call, pass_on)

    async def _post_responses(self, request: Request) -> Answer:
        return await self.responses(request, await request.json_body())

    async def _post_chat_completions(self, request: Request) -> Answer:
        return await self.chat_completions(request, await request.json_body())

    async def _get_models(self, request: Request) -> Answer:
        return models_reply([self])

    async def _get_health(self, request: Request) -> Answer:
        """200 once requests are answered; the body says in one word what it is instead."""
        state = self._source.current()
        if isinstance(state, Ready):
            return Reply(200, msgspec.json.encode({"status": "ready", "server": self.name}))
        return not_ready_reply(self.name, state)

    async def _get_inner_vllm_config(self, request: Request) -> Answer:
        """The engines' addresses for those who talk to them directly, and whether /v1/responses there answers as this
        server does; a key that is a secret is not shown.
        """
        state = self._source.current()
        if isinstance(state, NotReady):
            return not_ready_reply(self.name, state)
        return Reply(200, msgspec.json.encode(_inner_config(state.endpoints, self._direct)))


def stored_responses(servers: Sequence[ModelServer]) -> StoredResponses:
    """Those of all `servers`: an id does not say whose it is."""
    stores = list(dict.fromkeys(server.store for server in servers))
    return StoredResponses(stores, [server.native for server in servers if server.native is not None])


def models_reply(servers: Sequence[ModelServer]) -> Reply:
    """One entry for each server that answers requests, in the order given."""
    entries = [_model_entry(server) for server in servers if isinstance(server.state(), Ready)]
    return Reply(200, msgspec.json.encode({"object": "list", "data": entries}))


def _model_entry(server: ModelServer) -> dict[str, object]:
    return {
        "id": server.model,
        "object": "model",
        "created": server.created,
        "owned_by": "local_vllm",
        "server": server.name,
    }


def _inner_config(endpoints: tuple[Endpoint, ...], direct: bool) -> dict[str, object]:
    key = endpoints[0].api_key
    return {
        "base_url": [endpoint.base_url for endpoint in endpoints],
        "api_key": key if key in OPEN_KEYS else REDACTED,
        "model": endpoints[0].model,
        "direct_responses": direct,
    }
