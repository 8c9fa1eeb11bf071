"""The base of an agent: `/run` rolls a row out, `/v1/responses` is the loop, `/health` the state of all that it needs.

How it drives the model is what an agent adds (`drive`); the conversation itself is `conversation`'s.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from msgspec import Raw

from local_vllm.config.environment_settings import AgentSettings
from local_vllm.config.schema import AGENTS
from local_vllm.environments.conversation import Conversation
from local_vllm.environments.failures import PASSED_ON, raised_in
from local_vllm.environments.over_http import OverHttp
from local_vllm.environments.places import Environment, InProcess
from local_vllm.environments.rows import Fields, encode, fields_of, read_row
from local_vllm.environments.sessions import read_cookies, set_cookie
from local_vllm.environments.timings import Timings
from local_vllm.errors import RequestError, UpstreamError
from local_vllm.serving.asgi import HTTPApplication, Routes, Send
from local_vllm.serving.neighbours import Neighbours
from local_vllm.serving.replies import JSON, Reply
from local_vllm.serving.requests import Limits, Receive, Request, Scope

LIMITS = Limits()
# Nobody asks for the answers of a rollout again by their ids.
_NOT_STORED = {"store": Raw(b"false")}


class Agent:
    """Derive from it and write `drive`."""

    kind: ClassVar[str] = AGENTS
    Settings: ClassVar[type[AgentSettings]] = AgentSettings

    def __init__(self, name: str, settings: Any, neighbours: Neighbours) -> None:
        self.name = name
        self.settings = settings
        self.neighbours = neighbours
        self.model = neighbours.model(settings.model_server.name)
        self.environment: Environment = _environment(settings, neighbours)
        self._application = HTTPApplication(self._routes(), LIMITS, self._start, self._close)

    def _routes(self) -> Routes:
        return {
            "/run": {"POST": self._post_run},
            "/v1/responses": {"POST": self._post_responses},
            "/health": {"GET": self._get_health},
        }

    async def drive(self, conversation: Conversation) -> None:
        """Ask the model and run its calls until there is nothing more to do."""
        raise NotImplementedError("an agent has to define drive")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)

    async def _start(self) -> None:
        await self.neighbours.start()
        await self.environment.start()

    async def _close(self) -> None:
        await self.environment.close()
        await self.neighbours.close()

    async def _post_run(self, request: Request) -> Reply:
        """A rollout is a session of its own: it takes no cookies from outside and gives none."""
        body = await request.json_body()
        timings = Timings()
        row = read_row(body)
        cookies: dict[bytes, bytes] = {}
        tools = await self.environment.tools()
        episode = await self.environment.seed(row, cookies)
        conversation = Conversation(self.model, episode, cookies, _NOT_STORED | row.request, tools, timings)
        await self._drive(conversation)
        response = conversation.response()
        _check_not_failed(response, self.model.name)
        with timings.of("verify"):
            finished = await episode.verify(row, response)
        return Reply(200, finished, JSON + (timings.header(), self._model_header()))

    async def _post_responses(self, request: Request) -> Reply:
        fields = fields_of(await request.json_body(), "request")
        _check_not_streamed(fields)
        timings = Timings()
        cookies = read_cookies(request.headers.get(b"cookie"))
        before = dict(cookies)
        tools = await self.environment.tools()
        episode = await self.environment.resume(cookies)
        conversation = Conversation(self.model, episode, cookies, fields, tools, timings)
        await self._drive(conversation)
        changed = tuple(set_cookie(*pair) for pair in cookies.items() - before.items())
        return Reply(
            200, conversation.response(), JSON + (timings.header(), self._model_header(), *changed)
        )

    async def _drive(self, conversation: Conversation) -> None:
        try:
            await self.drive(conversation)
        except PASSED_ON:
            raise
        except Exception as error:
            raise raised_in(f"{self.name}.drive", error) from error

    async def _get_health(self, request: Request) -> Reply:
        if (not_ready := self.neighbours.not_ready()) is not None:
            return not_ready
        await self.environment.check_health()
        return Reply(200, encode({"status": "ready", "server": self.name, "model_server": self.model.name}))

    def _model_header(self) -> tuple[bytes, bytes]:
        return b"x-model-server", self.model.name.encode()


class _Status(msgspec.Struct, gc=False):
    status: str | None = None
    error: dict[str, Any] | None = None


def _environment(settings: AgentSettings, neighbours: Neighbours) -> Environment:
    name = settings.resources_server.name
    if settings.resources_server_in_process:
        return InProcess(neighbours.resources(name))
    return OverHttp(name, neighbours.url(name), neighbours.key)


def _check_not_failed(response: bytes, model: str) -> None:
    """An engine that gave up says nothing about the model: there is nothing to verify."""
    read = msgspec.json.decode(response, type=_Status)
    if read.status == "failed":
        reason = (read.error or {}).get("message") or "it gave no reason"
        raise UpstreamError(
            f"{model} failed while it answered: {reason}", status=502, code="response_failed"
        )


def _check_not_streamed(fields: Fields) -> None:
    if "stream" in fields and bytes(fields["stream"]) == b"true":
        message = "An agent answers when it is done, and does not stream: leave `stream` out."
        raise RequestError(message, param="stream", code="unsupported_value")
