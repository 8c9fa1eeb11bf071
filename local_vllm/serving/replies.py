"""What goes back to a client: ready bytes or a stream of them, and the one table from failures to HTTP.

Sending them is left to `asgi`; the shape of OpenAI's objects to the protocol.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from local_vllm.errors import EngineUnavailable, LocalVLLMError, RequestError, UpstreamError
from local_vllm.protocol.errors import ErrorFields, error_body
from local_vllm.serving.endpoints import NotReady

logger = logging.getLogger(__name__)

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Headers = ((b"content-type", b"application/json"),)
# The openai client retries a 503 by itself unless it is told not to.
DO_NOT_RETRY: Headers = ((b"x-should-retry", b"false"),)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes
    headers: Headers = JSON

    def with_headers(self, headers: Headers) -> Reply:
        return replace(self, headers=self.headers + headers) if headers else self


@dataclass(frozen=True, slots=True)
class StreamReply:
    """Server-sent events, passed on as they come. Whoever sends them closes `resources` afterwards.

    When they have been sent, `failure` is what went wrong in the middle, if their last one tells of it.
    """

    chunks: AsyncIterator[bytes]
    resources: AbstractAsyncContextManager[object]
    headers: Headers
    status: int = 200
    failure: Callable[[], Exception | None] = lambda: None


class Refused(LocalVLLMError):
    """A server of this process answered with an error, which goes on to the client as it is."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"refused with status {reply.status}: {reply.body[:500].decode(errors='replace')}")
        self.reply = reply


def failure_reply(error: Exception) -> Reply:
    """The table. What is no LocalVLLMError is our fault: it is logged whole, and answered without detail."""
    match error:
        case Refused():
            return error.reply
        case RequestError():
            return Reply(error.status, error_body(error))
        case EngineUnavailable():
            return _unavailable(str(error), error.code, error.retry_after_s)
        case UpstreamError():
            return Reply(error.status, error_body(error))
        case LocalVLLMError():
            logger.error("%s", error)
            return Reply(500, error_body(error))
    logger.error("Unexpected failure while answering a request", exc_info=error)
    return Reply(500, _server_error("Internal error; the server's log has it.", "internal_error"))


def failure_status(error: Exception) -> int:
    """The status of that reply."""
    match error:
        case Refused():
            return error.reply.status
        case RequestError() | UpstreamError():
            return error.status
        case EngineUnavailable():
            return 503
    return 500


def retry_after(answer: object) -> Headers:
    """The header of an engine's answer that says when to ask again, if the engine has said so."""
    said: str | None = getattr(answer, "retry_after", None)
    return ((b"retry-after", said.encode("latin-1")),) if said else ()


def not_ready_reply(server: str, state: NotReady) -> Reply:
    """503 for a server whose engine cannot answer now, with the code `engine_<state>`."""
    message = state.message if server in state.message else f"{server}: {state.message}"
    return _unavailable(message, f"engine_{state.state}", state.retry_after_s)


def overloaded_reply(message: str, retry_after_s: int) -> Reply:
    """429 for a request that would be one too many."""
    body = error_body(ErrorFields(message, "rate_limit_error", None, "rate_limit_exceeded"))
    return Reply(429, body, JSON + ((b"retry-after", b"%d" % retry_after_s),))


def _unavailable(message: str, code: str, retry_after_s: int | None) -> Reply:
    body = _server_error(message, code)
    if retry_after_s is None:
        return Reply(503, body, JSON + DO_NOT_RETRY)
    return Reply(503, body, JSON + ((b"retry-after", b"%d" % retry_after_s),))


def _server_error(message: str, code: str) -> bytes:
    return error_body(ErrorFields(message, "server_error", None, code))
