"""Where an agent's environment is: in its own process, or behind HTTP. An agent sees no difference.

What the environment does with a row, a call or a response is left to `episodes`.
"""

from __future__ import annotations

from typing import Any, Protocol

from local_vllm.environments.resources_server import ResourcesServer
from local_vllm.environments.rows import InputRow
from local_vllm.environments.sessions import cookie_name, lost_session
from local_vllm.serving.neighbours import Cookies


class Episode(Protocol):
    """One rollout's session at its environment."""

    async def call(self, name: str, arguments: str) -> str:
        """The text for the model that calls a tool, whether that went well or not."""
        ...

    async def verify(self, row: InputRow, response: bytes) -> bytes:
        """The output row."""
        ...


class Environment(Protocol):
    """A resources server, as its agents meet it."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def check_health(self) -> None:
        """Raises what an agent's `/health` answers with while the environment cannot work."""
        ...

    async def tools(self) -> bytes:
        """The function tools, as a Responses request has them."""
        ...

    async def seed(self, row: InputRow, cookies: Cookies) -> Episode:
        """A new session for a row."""
        ...

    async def resume(self, cookies: Cookies) -> Episode:
        """The session that the cookies name; a new one, without a row, where they name none.

        Raises EngineUnavailable when it is not there any more.
        """
        ...


class InProcess:
    """An environment that is an object of this process."""

    def __init__(self, server: ResourcesServer) -> None:
        self._server = server
        self._cookie = cookie_name(server.name)

    async def start(self) -> None:
        await self._server.setup()

    async def close(self) -> None:
        await self._server.teardown()

    async def check_health(self) -> None:
        """Its models are neighbours of the agent too."""

    async def tools(self) -> bytes:
        return self._server.episodes.definitions

    async def seed(self, row: InputRow, cookies: Cookies) -> Episode:
        session = type(self._server).Session()
        await self._server.episodes.begin(row, session)
        return _EpisodeHere(self._server, session)

    async def resume(self, cookies: Cookies) -> Episode:
        """Sessions that go on from one request to the next are kept, within bounds.

        Raises EngineUnavailable for one that is not here any more: its tools would go on as if nothing had been.
        """
        sessions, key = self._server.sessions, cookies.get(self._cookie)
        if not self._server.episodes.have_sessions:
            return _EpisodeHere(self._server, type(self._server).Session())
        if key is None:
            cookies[self._cookie], session = sessions.open()
        elif (session := sessions.find(key)) is None:
            raise lost_session(self._server.name, "Leave the cookie out to begin another one.")
        return _EpisodeHere(self._server, session)


class _EpisodeHere:
    __slots__ = ("_episodes", "_session")

    def __init__(self, server: ResourcesServer, session: Any) -> None:
        self._episodes = server.episodes
        self._session = session

    async def call(self, name: str, arguments: str) -> str:
        return (await self._episodes.call(name, arguments, self._session)).text

    async def verify(self, row: InputRow, response: bytes) -> bytes:
        return await self._episodes.verify(row, response, self._session)
