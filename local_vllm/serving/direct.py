"""The Responses API in an engine's own API server, without a hop: an ASGI middleware for `vllm serve --middleware`.

It converts as the engine's model server does, and asks vLLM's Chat Completions in the same process. It keeps no
responses and chooses no engine, and vLLM's own key is asked of its clients.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

from local_vllm.protocol.completions import Render
from local_vllm.protocol.converter import Converter
from local_vllm.protocol.supplied import NOTHING, wanted
from local_vllm.serving.asgi import Answer, Application, HTTPApplication, Send
from local_vllm.serving.audio import AudioFolder
from local_vllm.serving.chat_template import ChatTemplate
from local_vllm.serving.client import EngineClient
from local_vllm.serving.direct_settings import DirectSettings, Template, read_settings
from local_vllm.serving.dispatch import ask_for_what_fits
from local_vllm.serving.endpoints import Endpoint
from local_vllm.serving.engine_answers import EngineAnswers
from local_vllm.serving.inner_transport import ROOT_URL, InnerTransport, asked_in
from local_vllm.serving.lookups import Lookups
from local_vllm.serving.requests import Limits, Receive, Request, Scope
from local_vllm.serving.response_store import NoStore
from local_vllm.serving.sessions import Destination
from local_vllm.serving.streams import as_asked

PATH = "/v1/responses"


class DirectResponses:
    """Answers POST /v1/responses in the place of `app`, vLLM's application; everything else is that's.

    Raises ConfigError when the environment does not hold its settings.
    """

    def __init__(self, app: Application) -> None:
        settings = read_settings(os.environ)
        self._app = app
        self._key = os.environ.get("VLLM_API_KEY", "").encode()
        self._settings = settings
        self._converter = Converter(settings.converter, render=_render(settings.template))
        client = EngineClient(InnerTransport(app), settings.timeouts, server=settings.server)
        self._answers = EngineAnswers(settings.server, self._converter, client)
        self._here = Destination(Endpoint(f"{ROOT_URL}/v1", "", settings.model))
        limits = Limits(max_body_bytes=settings.max_request_mib << 20)
        self._lookups = Lookups(NoStore(), AudioFolder(settings.audio_root, limits.max_body_bytes))
        self._responses = HTTPApplication({PATH: {"POST": self._post}}, limits, _nothing, _nothing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whoever has no key is left to vLLM, which refuses them before anything of theirs is read."""
        if scope.get("path") == PATH and scope.get("method") == "POST" and has_key(scope["headers"], self._key):
            await self._responses(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _post(self, request: Request) -> Answer:
        asked_in.set(request.scope)
        asked = self._converter.read(await request.json_body())
        wants = wanted(asked)
        supplied = await self._lookups.supply(wants) if wants else NOTHING
        request.hold(sum(map(len, supplied.audio)))
        call = self._converter.convert(asked, engines_name(asked.model, self._settings), supplied)
        if call.settled is not None:
            return as_asked(call, call.settled)
        answer = self._answers.streamed_response if call.stream else self._answers.whole_response
        return await ask_for_what_fits(call, self._here, lambda call, to: answer(call, to, _unkept))


def has_key(headers: Sequence[tuple[bytes, bytes]], key: bytes) -> bool:
    """Whether a request may be read. vLLM asks for the key again when it is passed on."""
    if not key:
        return True
    scheme, _, given = next((value for name, value in headers if name == b"authorization"), b"").partition(b" ")
    return scheme.lower() == b"bearer" and secrets.compare_digest(given, key)


def engines_name(asked: str | None, settings: DirectSettings) -> str:
    """The model to ask vLLM for: that of the server under its names, and any other as it is, such as an adapter's."""
    return settings.model if asked is None or asked in settings.other_names else asked


def _render(template: Template | None) -> Render | None:
    return ChatTemplate(template.tokenizer, template.cache).render if template is not None else None


def _unkept(answer: bytes) -> None:
    """No response is kept here."""


async def _nothing() -> None:
    """vLLM starts and ends without it."""
