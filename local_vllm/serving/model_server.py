"""One model server: the Responses API and Chat Completions in front of the engines of one endpoint source.

What the bodies mean is left to the converter, where engines come from to the source, and HTTP to `asgi`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec

from local_vllm.errors import EngineUnavailable
from local_vllm.protocol import Answer as Converted
from local_vllm.protocol import ChatCall, Converter, tokenize_body
from local_vllm.protocol.calls import COMPLETIONS, Doubt
from local_vllm.protocol.events import events_of_whole
from local_vllm.protocol.stored import to_keep
from local_vllm.protocol.supplied import NOTHING, Supplied, wanted
from local_vllm.serving.admission import MAX_IN_FLIGHT, Admission
from local_vllm.serving.asgi import (
    Answer,
    Limits,
    Receive,
    Request,
    Routes,
    Scope,
    Send,
    answer_http,
    answer_lifespan,
    refuse_websocket,
)
from local_vllm.serving.audio import AudioFolder
from local_vllm.serving.calls import asking_session
from local_vllm.serving.client import EngineAnswer, EngineClient, EngineStream
from local_vllm.serving.completion_streams import as_chat_stream
from local_vllm.serving.endpoints import Endpoint, EndpointSource, NotReady, Ready
from local_vllm.serving.lookups import Lookups
from local_vllm.serving.native_responses import NativeResponses
from local_vllm.serving.replies import JSON, Reply, StreamReply, logger, not_ready_reply, retry_after
from local_vllm.serving.response_store import ResponseStore, StoreSetting, open_store
from local_vllm.serving.sessions import SESSION_HEADER, Destination, Sessions
from local_vllm.serving.stored_responses import StoredResponses
from local_vllm.serving.streams import EVENT_STREAM, UNBUFFERED, Refused, ResponseStream

# Keys that stand in every example and open nothing; any other is a secret.
OPEN_KEYS = ("", "dummy", "EMPTY")
REDACTED = "***"
# The code of a call whose engine died over it, and how long the next engine is waited for to ask it again.
LOST = "engine_lost"
RECOVERED_WITHIN_S = 1800.0

Keep = Callable[[bytes], None]
Ask = Callable[[ChatCall, Destination], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request waits for an engine that is being started again, and whether one that was in flight when
    the engine died is asked again of the next one.
    """

    wait_s: float = 0.0
    retry_lost: bool = False


class _LimitTooHigh(Exception):
    """The engine refused a call for its limit on tokens; `lower` is the one to make instead."""

    def __init__(self, lower: ChatCall) -> None:
        self.lower = lower


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
    ) -> None:
        """`native` engines speak the Responses API themselves, and keep their responses."""
        self.name = name
        self.model = model
        self.created = int(time.time())
        self._source = source
        self._converter = converter
        self._client = client
        self._sessions = sessions
        self.limits = limits
        self.store = store or open_store(StoreSetting())
        self.native = NativeResponses(name, source, client, converter) if native else None
        self._lookups = Lookups(self.store, audio)
        self._patience = patience
        self.admission = Admission(name, max_in_flight)
        self._warned: set[str] = set()
        self._routes = self._route_table()

    def _route_table(self) -> Routes:
        return {
            "/v1/responses": {"POST": self._post_responses},
            **stored_responses([self]).routes(),
            "/v1/chat/completions": {"POST": self._post_chat_completions},
            "/v1/models": {"GET": self._get_models},
            "/health": {"GET": self._get_health},
            "/get_inner_vllm_config": {"GET": self._get_inner_vllm_config},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answer_http(self._routes, self.limits, scope, receive, send)
        elif scope["type"] == "lifespan":
            await answer_lifespan(self.start, self.close, receive, send)
        else:
            await refuse_websocket(receive, send)

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
        self.admission.enter(request)
        state = await self._awaited()
        if isinstance(state, NotReady):
            return not_ready_reply(self.name, state)
        asked = self._converter.read(body)
        wants = wanted(asked)
        supplied = await self._lookups.supply(wants) if wants else NOTHING
        call = self._converter.convert(asked, state.endpoints[0].model, supplied)
        keep = lambda answer: self._keep(call, supplied, body, answer)  # noqa: E731
        if call.settled is not None:
            return self._settled(call, keep)
        respond = self._stream_response if call.stream else self._respond
        return await self._ask(state, request, call, lambda call, to: respond(call, to, keep))

    async def _awaited(self) -> Ready | NotReady:
        """Where the engines are, after a wait for one that is being started again."""
        state = self._source.current()
        if isinstance(state, NotReady) and state.passes:
            return await self._source.settled(self._patience.wait_s)
        return state

    async def _ask(self, state: Ready, request: Request, call: ChatCall, ask: Ask) -> Answer:
        """Ask the session's engine; its successor too when it died over the answer, and that is wanted."""
        self.admission.count(request, call.session_hint)
        asking_session.set(_session(request, call))
        try:
            return await self._ask_one(state, request, call, ask)
        except EngineUnavailable as error:
            if error.code != LOST or call.stream or not self._patience.retry_lost:
                raise
            recovered = await self._source.settled(RECOVERED_WITHIN_S)
            if isinstance(recovered, NotReady):
                raise
        return await self._ask_one(recovered, request, call, ask)

    async def _ask_one(self, state: Ready, request: Request, call: ChatCall, ask: Ask) -> Answer:
        """Ask the session's engine. One that cannot be reached has heard nothing, so another may be asked."""
        others = len(state.endpoints) - 1
        while True:
            to = self._sessions.choose(state, request.headers, call.session_hint)
            try:
                return await self._ask_for_what_fits(call, to, ask)
            except EngineUnavailable:
                left = self._source.lost(to.endpoint)
                if not others or isinstance(left, NotReady) or to.endpoint in left.endpoints:
                    raise
                state, others = left, others - 1

    async def _ask_for_what_fits(self, call: ChatCall, to: Destination, ask: Ask) -> Answer:
        """An engine that refused a limit on tokens, and told the highest, is asked for that."""
        while True:
            try:
                return await ask(call, to)
            except _LimitTooHigh as refused:
                call = refused.lower

    def _keep(self, call: ChatCall, supplied: Supplied, body: bytes, answer: bytes) -> None:
        """Hand a response to the store; it is written while nobody waits."""
        asked = call.asked
        if asked is not None and asked.store:
            previous = asked.request.previous_response_id
            self.store.put(to_keep(asked.response_id, previous, body, answer, supplied))

    def _settled(self, call: ChatCall, keep: Keep) -> Answer:
        answer: bytes = call.settled  # type: ignore[assignment]
        keep(answer)
        return Reply(200, events_of_whole(answer), EVENT_STREAM) if call.stream else Reply(200, answer)

    async def _respond(self, call: ChatCall, to: Destination, keep: Keep) -> Answer:
        engine = await self._client.post(to.endpoint, call.path, call.body, rank=to.rank)
        if engine.status != 200:
            return self._failed(call, engine, engine.body, to, keep)
        answer = self._converter.to_response(call, engine.body)
        if answer.needs_tokenize:
            answer = await self._with_prompt_ids(call, engine.body, to)
        self._warn_once(answer.doubts)
        keep(answer.body)
        return Reply(answer.status, answer.body, JSON + to.headers)

    async def _with_prompt_ids(self, call: ChatCall, engine_body: bytes, to: Destination) -> Converted:
        """A second call, for engines that leave the prompt's token ids out of their answers."""
        return self._converter.to_response(call, engine_body, await self._tokenize(call, to))

    async def _tokenize(self, call: ChatCall, to: Destination) -> bytes:
        tokenized = await self._client.post_to_root(to.endpoint, "/tokenize", tokenize_body(call))
        return tokenized.body if tokenized.status == 200 else b"{}"

    async def _stream_response(self, call: ChatCall, to: Destination, keep: Keep) -> Answer:
        async with AsyncExitStack() as stack:
            opening = self._client.stream(to.endpoint, call.path, call.body, rank=to.rank)
            engine = await stack.enter_async_context(opening)
            if engine.status != 200:
                return self._failed(call, engine, await _whole_body(engine), to, keep)
            answer = self._new_stream(engine, call, to, keep)
            if refused := await answer.open():
                return self._failed(call, refused, refused.body, to, keep)
            chunks = answer.chunks()
            stack.push_async_callback(chunks.aclose)
            return StreamReply(chunks, stack.pop_all(), EVENT_STREAM + to.headers)

    def _new_stream(
        self, engine: EngineStream, call: ChatCall, to: Destination, keep: Keep
    ) -> ResponseStream:
        return ResponseStream(
            engine,
            self._converter.stream(call),
            tokenize=lambda: self._tokenize(call, to),
            warn=self._warn_once,
            keep=keep,
        )

    def _warn_once(self, doubts: Sequence[Doubt]) -> None:
        """The first doubt of each kind is told."""
        for doubt in doubts:
            if doubt.about not in self._warned:
                self._warned.add(doubt.about)
                logger.warning("%s: %s.", self.name, doubt.message)

    async def chat_completions(self, request: Request, body: bytes) -> Answer:
        """Answers a Chat Completions request with the engine's own bytes, streamed or whole."""
        return await self._forward(request, body, self._converter.chat_passthrough)

    async def _forward(
        self, request: Request, body: bytes, prepare: Callable[[bytes, str], ChatCall]
    ) -> Answer:
        self.admission.enter(request)
        state = await self._awaited()
        if isinstance(state, NotReady):
            return not_ready_reply(self.name, state)
        call = prepare(body, state.endpoints[0].model)
        pass_on = self._pass_stream_on if call.stream else self._pass_on
        return await self._ask(state, request, call, pass_on)

    async def _pass_on(self, call: ChatCall, to: Destination) -> Answer:
        answer = await self._client.post(to.endpoint, call.path, call.body, rank=to.rank)
        if answer.status != 200:
            return self._failed(call, answer, answer.body, to)
        passed = self._converter.to_response(call, answer.body).body
        return Reply(200, passed, _content_type(answer.content_type) + to.headers)

    async def _pass_stream_on(self, call: ChatCall, to: Destination) -> Answer:
        async with AsyncExitStack() as stack:
            stream = self._client.stream(to.endpoint, call.path, call.body, rank=to.rank)
            answer = await stack.enter_async_context(stream)
            if answer.status != 200:
                return self._failed(call, answer, await _whole_body(answer), to)
            headers = _content_type(answer.content_type) + UNBUFFERED + to.headers
            chunks = as_chat_stream(answer.chunks, call.body) if call.path == COMPLETIONS else answer.chunks
            return StreamReply(chunks, stack.pop_all(), headers)

    def _failed(
        self,
        call: ChatCall,
        answer: EngineAnswer | EngineStream | Refused,
        body: bytes,
        to: Destination,
        keep: Keep | None = None,
    ) -> Reply:
        """The engine's failure as OpenAI's. One that makes a response all the same is given to `keep`."""
        if lower := self._converter.with_limit_that_fits(call, answer.status, body):
            raise _LimitTooHigh(lower)
        failure = self._converter.from_failure(call, answer.status, body)
        if failure.status == 200 and keep is not None:
            keep(failure.body)
        if failure.status == 200 and call.stream:
            return Reply(200, events_of_whole(failure.body), EVENT_STREAM + to.headers)
        return Reply(failure.status, failure.body, JSON + retry_after(answer) + to.headers)

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
        """The engines' addresses for those who talk to them directly; a key that is a secret is not shown."""
        state = self._source.current()
        if isinstance(state, NotReady):
            return not_ready_reply(self.name, state)
        return Reply(200, msgspec.json.encode(_inner_config(state.endpoints)))


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


def _session(request: Request, call: ChatCall) -> str:
    """What a session is called in the log; its cookie is nobody's business."""
    name = request.headers.get(SESSION_HEADER)
    return name.decode("latin-1")[:100] if name else (call.session_hint or "")[:100]


def _inner_config(endpoints: tuple[Endpoint, ...]) -> dict[str, object]:
    key = endpoints[0].api_key
    return {
        "base_url": [endpoint.base_url for endpoint in endpoints],
        "api_key": key if key in OPEN_KEYS else REDACTED,
        "model": endpoints[0].model,
    }


def _content_type(value: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"content-type", value.encode("latin-1")),)


async def _whole_body(answer: EngineStream) -> bytes:
    return b"".join([piece async for piece in answer.chunks])
