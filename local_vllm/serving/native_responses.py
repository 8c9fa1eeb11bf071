"""Responses that the engines of a server keep themselves: a request about one goes on to them, and the answer
comes back as it is. Nobody knows from an id who keeps it, so they are asked one after another.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

from local_vllm.errors import LocalVLLMError, UpstreamError
from local_vllm.protocol import ChatCall, Converter
from local_vllm.protocol.calls import RESPONSES
from local_vllm.serving.asgi import Answer
from local_vllm.serving.client import EngineClient, EngineStream
from local_vllm.serving.endpoints import Endpoint, EndpointSource, NotReady
from local_vllm.serving.replies import JSON, Reply, StreamReply, failure_reply, not_ready_reply, retry_after
from local_vllm.serving.requests import Request
from local_vllm.serving.streams import UNBUFFERED

# Nothing is generated for such a request, so one that does not answer is not waited for.
ANSWER_DEADLINE_S = 10.0

# An id becomes part of a URL that is asked with our key: `..` must not lead elsewhere.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+=~-]{0,1023}")
_ONLY_TO_CONVERT = ChatCall(b"", False, None, path=RESPONSES)

Ask = Callable[[], Awaitable[Answer | None]]


class NativeResponses:
    """What the engines of one server keep."""

    def __init__(self, server: str, source: EndpointSource, client: EngineClient, converter: Converter) -> None:
        self._server = server
        self._source = source
        self._client = client
        self._converter = converter

    async def ask(self, request: Request, response_id: str, part: str) -> Answer | None:
        """The answer of the first engine that has one; a failure if there is none, None for what is no id.

        `part` is what follows the id in the path: nothing, or `/cancel` say.
        """
        if not _ID.fullmatch(response_id):
            return None
        state = self._source.current()
        if isinstance(state, NotReady):
            return not_ready_reply(self._server, state)
        path = f"{RESPONSES}/{response_id}{part}{_query(request)}"
        return await first_that_knows([partial(self._ask, request, path, each) for each in state.endpoints])

    async def _ask(self, request: Request, path: str, endpoint: Endpoint) -> Answer:
        try:
            return await self._answer(request, path, endpoint)
        except LocalVLLMError as error:
            return failure_reply(error)

    async def _answer(self, request: Request, path: str, endpoint: Endpoint) -> Answer:
        method = "GET" if request.scope["method"] == "HEAD" else request.scope["method"]
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(ANSWER_DEADLINE_S):
                    opening = self._client.stream(endpoint, path, b"", method=method)
                    answer = await stack.enter_async_context(opening)
                    if not _is_stream(answer):
                        return self._whole(answer, b"".join([piece async for piece in answer.chunks]))
            except TimeoutError:
                message = f"No answer from {endpoint.base_url} within {ANSWER_DEADLINE_S:.0f} s."
                raise UpstreamError(message, status=504, code="engine_timeout") from None
            request.watch_client()
            return StreamReply(answer.chunks, stack.pop_all(), _content_type(answer) + UNBUFFERED)

    def _whole(self, answer: EngineStream, body: bytes) -> Reply:
        if answer.status < 400:
            return Reply(answer.status, body, _content_type(answer))
        failure = self._converter.from_failure(_ONLY_TO_CONVERT, answer.status, body)
        return Reply(failure.status, failure.body, JSON + retry_after(answer))


async def first_that_knows(asks: list[Ask]) -> Answer | None:
    """The first answer that is no failure. Without one, the first failure that says more than `not found`."""
    failure = None
    for ask in asks:
        answer = await ask()
        if answer is None:
            continue
        if answer.status < 400:
            return answer
        if failure is None or failure.status == 404:
            failure = answer
    return failure


def _is_stream(answer: EngineStream) -> bool:
    return answer.status == 200 and answer.content_type.startswith("text/event-stream")


def _content_type(answer: EngineStream) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"content-type", answer.content_type.encode("latin-1")),)


def _query(request: Request) -> str:
    given = request.scope["query_string"].decode("latin-1")
    return f"?{given}" if given else ""
