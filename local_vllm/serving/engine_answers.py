"""One call of one engine, and its answer as the client is given it: converted or passed on, whole or streamed.

Which engine that is has been decided; what the bytes mean is left to the converter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from local_vllm.errors import LocalVLLMError
from local_vllm.protocol import Answer as Converted
from local_vllm.protocol import ChatCall, Converter, tokenize_body
from local_vllm.protocol.calls import COMPLETIONS, Doubt
from local_vllm.protocol.events import events_of_whole
from local_vllm.serving.asgi import Answer
from local_vllm.serving.client import EngineAnswer, EngineClient, EngineStream
from local_vllm.serving.completion_streams import as_chat_stream
from local_vllm.serving.dispatch import LimitTooHigh
from local_vllm.serving.replies import JSON, Reply, StreamReply, logger, retry_after
from local_vllm.serving.sessions import Destination
from local_vllm.serving.streams import EVENT_STREAM, UNBUFFERED, Refused, ResponseStream

Keep = Callable[[bytes], None]


class EngineAnswers:
    """The answers of the engines of the server called `name`; each kind of doubt about them is told once."""

    def __init__(self, name: str, converter: Converter, client: EngineClient) -> None:
        self._name = name
        self._converter = converter
        self._client = client
        self._warned: set[str] = set()

    async def whole_response(self, call: ChatCall, to: Destination, keep: Keep) -> Answer:
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
        """What the engine says of the prompt. Without that the answer stays an answer, and the doubt is told."""
        try:
            tokenized = await self._client.post_to_root(to.endpoint, "/tokenize", tokenize_body(call))
        except LocalVLLMError:
            return b"{}"
        return tokenized.body if tokenized.status == 200 else b"{}"

    async def streamed_response(self, call: ChatCall, to: Destination, keep: Keep) -> Answer:
        async with AsyncExitStack() as stack:
            opening = self._client.stream(to.endpoint, call.path, call.body, rank=to.rank)
            engine = await stack.enter_async_context(opening)
            if engine.status != 200:
                return self._failed(call, engine, await _whole_body(engine), to, keep)
            answer = self._new_stream(engine, call, to, keep)
            if refused := await answer.open():
                await _unless_it_died(engine, refused)
                return self._failed(call, refused, refused.body, to, keep)
            chunks = answer.chunks()
            stack.push_async_callback(chunks.aclose)
            headers = EVENT_STREAM + to.headers
            return StreamReply(chunks, stack.pop_all(), headers, failure=lambda: answer.failure)

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
                logger.warning("%s: %s.", self._name, doubt.message)

    async def passed_on(self, call: ChatCall, to: Destination) -> Answer:
        answer = await self._client.post(to.endpoint, call.path, call.body, rank=to.rank)
        if answer.status != 200:
            return self._failed(call, answer, answer.body, to)
        passed = self._converter.to_response(call, answer.body).body
        return Reply(200, passed, _content_type(answer.content_type) + to.headers)

    async def stream_passed_on(self, call: ChatCall, to: Destination) -> Answer:
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
            raise LimitTooHigh(lower)
        failure = self._converter.from_failure(call, answer.status, body)
        if failure.status == 200 and keep is not None:
            keep(failure.body)
        if failure.status == 200 and call.stream:
            return Reply(200, events_of_whole(failure.body), EVENT_STREAM + to.headers)
        return Reply(failure.status, failure.body, JSON + retry_after(answer) + to.headers)


def _content_type(value: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"content-type", value.encode("latin-1")),)


async def _unless_it_died(engine: EngineStream, refused: Refused) -> None:
    """An engine that dies may say so in its streams first. Raises what became of it."""
    if refused.status >= 500 and engine.verdict is not None and (died := await engine.verdict()) is not None:
        raise died


async def _whole_body(answer: EngineStream) -> bytes:
    return b"".join([piece async for piece in answer.chunks])
