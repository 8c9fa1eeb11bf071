"""Which engine is asked a call, and how often: one that cannot be reached has a successor, and so has one that died
over its answer where that is wanted.

What is asked, and what comes of an answer, is left to others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from local_vllm.errors import EngineUnavailable
from local_vllm.protocol import ChatCall
from local_vllm.serving.admission import Admission
from local_vllm.serving.asgi import Answer
from local_vllm.serving.calls import asking_session
from local_vllm.serving.endpoints import EndpointSource, NotReady, Ready
from local_vllm.serving.requests import Request
from local_vllm.serving.sessions import SESSION_HEADER, Destination, Sessions

# The code of a call whose engine died over it, and how long the next engine is waited for to ask it again.
LOST = "engine_lost"
RECOVERED_WITHIN_S = 1800.0

Ask = Callable[[ChatCall, Destination], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request waits for an engine that is being started again, and whether one that was in flight when
    the engine died is asked again of the next one.
    """

    wait_s: float = 0.0
    retry_lost: bool = False


class LimitTooHigh(Exception):
    """An engine refused a call for its limit on tokens; `lower` is the one to make instead."""

    def __init__(self, lower: ChatCall) -> None:
        self.lower = lower


class Dispatcher:
    """Asks the engines of one source, each session the same one."""

    def __init__(
        self, source: EndpointSource, sessions: Sessions, admission: Admission, patience: Patience
    ) -> None:
        self._source = source
        self._sessions = sessions
        self._admission = admission
        self._patience = patience

    async def admit(self, request: Request) -> Ready | NotReady:
        """Where the engines are for a request that is let in, after a wait for one that is being started again.

        Raises:
            Refused: there are as many requests as may be (429).
        """
        self._admission.enter(request)
        state = self._source.current()
        if isinstance(state, NotReady) and state.passes:
            return await self._source.settled(self._patience.wait_s)
        return state

    async def send(self, state: Ready, request: Request, call: ChatCall, ask: Ask) -> Answer:
        """Ask the session's engine; its successor too when it died over the answer, and that is wanted."""
        self._admission.count(request, call.session_hint)
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
                return await ask_for_what_fits(call, to, ask)
            except EngineUnavailable:
                left = self._source.lost(to.endpoint)
                if not others or isinstance(left, NotReady) or to.endpoint in left.endpoints:
                    raise
                state, others = left, others - 1


async def ask_for_what_fits(call: ChatCall, to: Destination, ask: Ask) -> Answer:
    """An engine that refused a limit on tokens, and told the highest, is asked for that."""
    while True:
        try:
            return await ask(call, to)
        except LimitTooHigh as refused:
            call = refused.lower


def _session(request: Request, call: ChatCall) -> str:
    """What a session is called in the log; its cookie is nobody's business."""
    name = request.headers.get(SESSION_HEADER)
    return name.decode("latin-1")[:100] if name else (call.session_hint or "")[:100]
