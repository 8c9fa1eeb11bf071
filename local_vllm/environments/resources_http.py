"""The routes of a resources server: its tools, `seed_session` and `verify`, one session for each cookie.

An agent of the same process does without them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from local_vllm.environments.episodes import Episodes
from local_vllm.environments.rows import RESPONSE, encode, read_row
from local_vllm.environments.sessions import SessionTable, cookie_name, lost_session, read_cookies, set_cookie
from local_vllm.errors import RequestError
from local_vllm.serving.asgi import Handler, Routes
from local_vllm.serving.replies import JSON, Headers, Reply
from local_vllm.serving.requests import Request

# The code of an answer which is text for the model about its own call.
TOOL_ERROR = "tool_error"
_INSTEAD = (
    "Start the rollout anew; with num_workers above 1, run the environment inside its agent "
    "(resources_server_in_process: true)."
)


class ResourcesHttp:
    """The `routes` of one resources server. Without `sessions`, any replica answers any call.

    `not_ready` is the answer to `/health` while a model that the server needs cannot answer.
    """

    def __init__(
        self,
        name: str,
        episodes: Episodes,
        sessions: SessionTable | None,
        not_ready: Callable[[], Reply | None],
    ) -> None:
        self._name = name
        self._not_ready = not_ready
        self._episodes = episodes
        self._sessions = sessions
        self._cookie = cookie_name(name)
        posts: dict[str, Handler] = {"/seed_session": self._post_seed_session, "/verify": self._post_verify}
        posts |= {f"/{tool}": partial(self._post_tool, tool) for tool in episodes.tool_names}
        gets: dict[str, Handler] = {"/tools": self._get_tools, "/health": self._get_health}
        self.routes: Routes = {
            **{path: {"POST": handler} for path, handler in posts.items()},
            **{path: {"GET": handler} for path, handler in gets.items()},
        }

    async def _post_seed_session(self, request: Request) -> Reply:
        row = read_row(await request.json_body())
        if self._sessions is None:
            await self._episodes.begin(row, {})
            return Reply(200, b"{}")
        key, session = self._sessions.open()
        try:
            await self._episodes.begin(row, session)
        except BaseException:
            self._sessions.close(key)
            raise
        return Reply(200, b"{}", JSON + (set_cookie(self._cookie, key),))

    async def _post_tool(self, tool: str, request: Request) -> Reply:
        arguments = await request.json_body()
        session, headers = self._session(request)
        result = await self._episodes.call(tool, arguments, session)
        if result.kind == "error":
            return Reply(422, _tool_error(result.text), JSON + headers)
        text = encode(result.text) if result.kind == "text" else result.text.encode()
        return Reply(200, text, JSON + headers)

    async def _post_verify(self, request: Request) -> Reply:
        row = read_row(await request.json_body())
        if RESPONSE not in row.fields:
            raise RequestError(f"Missing required parameter: '{RESPONSE}'.", param=RESPONSE)
        session, _ = self._session(request)
        body = await self._episodes.verify(row, bytes(row.fields[RESPONSE]), session)
        if self._sessions is not None:
            self._sessions.close(self._key(request))
        return Reply(200, body)

    async def _get_tools(self, request: Request) -> Reply:
        return Reply(200, self._episodes.definitions)

    async def _get_health(self, request: Request) -> Reply:
        return self._not_ready() or Reply(200, encode({"status": "ready", "server": self._name}))

    def _session(self, request: Request) -> tuple[Any, Headers]:
        """The session of the request's cookie; a new one, and its cookie, for a client that has none."""
        if self._sessions is None:
            return {}, ()
        key = self._key(request)
        if key is None:
            key, session = self._sessions.open()
            return session, (set_cookie(self._cookie, key),)
        session = self._sessions.find(key)
        if session is None:
            raise lost_session(self._name, _INSTEAD)
        return session, ()

    def _key(self, request: Request) -> bytes | None:
        return read_cookies(request.headers.get(b"cookie")).get(self._cookie)


def _tool_error(text: str) -> bytes:
    fields = {"message": text, "type": "invalid_request_error", "param": None, "code": TOOL_ERROR}
    return msgspec.json.encode({"error": fields})
