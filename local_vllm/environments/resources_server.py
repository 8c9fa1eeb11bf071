"""The base of an environment: its tools are typed async methods, and `verify` says what a rollout is worth.

It is an application of its own (`resources_http`), and answers the agents of its process as an object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from local_vllm.config.environment_settings import ResourcesServerSettings
from local_vllm.config.schema import RESOURCES
from local_vllm.environments.episodes import Episodes
from local_vllm.environments.resources_http import ResourcesHttp
from local_vllm.environments.rollout import Rollout, Verdict
from local_vllm.environments.sessions import SessionTable
from local_vllm.environments.tools import tools_of
from local_vllm.serving.asgi import HTTPApplication, Send
from local_vllm.serving.neighbours import Neighbours
from local_vllm.serving.requests import Limits, Receive, Scope

LIMITS = Limits()


class ResourcesServer:
    """Derive from it, mark tools with `@tool`, and write `verify`.

    `Settings` is what the config can say, `Row` what a row has to hold (any type that pydantic knows), and
    `Session` makes what the tools of one rollout share, anew for each.
    """

    kind: ClassVar[str] = RESOURCES
    Settings: ClassVar[type[ResourcesServerSettings]] = ResourcesServerSettings
    Row: ClassVar[Any] = dict[str, Any]
    Session: ClassVar[Callable[[], Any]] = dict

    # Of sessions over HTTP. One inside an agent lives as long as its rollout.
    max_sessions: ClassVar[int] = 10_000
    session_idle_s: ClassVar[float] = 3600.0

    def __init__(self, name: str, settings: Any, neighbours: Neighbours) -> None:
        if not callable(type(self).Session):
            raise TypeError(f"{name}: Session has to make a session when it is called, as a class does")
        self.name = name
        self.settings = settings
        self.neighbours = neighbours
        self.episodes = Episodes(self, self._is_seeded())
        self.sessions = SessionTable(self.max_sessions, self.session_idle_s, type(self).Session)
        sessions = self.sessions if self.episodes.have_sessions else None
        http = ResourcesHttp(name, self.episodes, sessions, neighbours.not_ready)
        self._application = HTTPApplication(http.routes, LIMITS, self._start, self._close)

    @classmethod
    def check(cls) -> None:
        """Raises TypeError when a tool of the class cannot be one: told before anything is started."""
        tools_of(cls)

    async def setup(self) -> None:
        """Load what the environment needs, before its first rollout."""

    async def teardown(self) -> None:
        """Let go of it."""

    async def seed_session(self, row: Any, session: Any) -> None:
        """Prepare the session of one rollout. What it raises is an error of the rollout."""

    async def verify(self, rollout: Rollout[Any, Any]) -> Verdict:
        """What a finished rollout is worth. What it raises is an error of the rollout, no reward of 0."""
        raise NotImplementedError("an environment has to define verify")

    @classmethod
    def _is_seeded(cls) -> bool:
        return cls.seed_session is not ResourcesServer.seed_session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)

    async def _start(self) -> None:
        await self.neighbours.start()
        await self.setup()

    async def _close(self) -> None:
        await self.teardown()
        await self.neighbours.close()
