"""An environment that an agent reaches over HTTP, through aiohttp: one with workers or state of its own.

The routes are those of `resources_http`; errors of the far side keep their status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from local_vllm.environments.places import Episode
from local_vllm.environments.resources_http import TOOL_ERROR
from local_vllm.environments.rows import RESPONSE, InputRow, encode, on_one_line
from local_vllm.environments.sessions import cookie_name
from local_vllm.environments.tools import unknown_tool
from local_vllm.errors import EngineUnavailable, UpstreamError
from local_vllm.serving.neighbours import Cookies
from local_vllm.serving.replies import JSON, Headers, Refused, Reply

# A tool, or a verdict, takes as long as it takes; this ends what will never end.
WITHIN_S = 3600.0
HEALTH_WITHIN_S = 5.0
CONNECTED_WITHIN_S = 10.0
KEEP_ALIVE_S = 3.0
RETRY_AFTER_S = 5

_JSON = {"Content-Type": "application/json"}


class _Definition(Struct):
    name: str


class _Error(Struct):
    message: str = ""
    code: str | None = None


class _Refusal(Struct):
    error: _Error


class OverHttp:
    """The environment called `name` at `url`, which asks for `key`. What its tools are is asked once."""

    def __init__(self, name: str, url: str, key: str = "") -> None:
        self.name = name
        self._url = url
        self._headers = _JSON | ({"Authorization": f"Bearer {key}"} if key else {})
        self._session: aiohttp.ClientSession | None = None
        self._definitions: bytes | None = None
        self._tool_names: tuple[str, ...] = ()

    async def start(self) -> None:
        """Nothing is asked yet: the environment may come up after its agent."""

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def check_health(self) -> None:
        """An environment whose health is an error keeps its agent from working."""
        answer = await self.ask("GET", "health", b"", {}, within_s=HEALTH_WITHIN_S)
        if answer.status >= 500:
            raise Refused(answer)

    async def tools(self) -> bytes:
        if self._definitions is None:
            definitions = _passed(await self.ask("GET", "tools", b"", {})).body
            listed = msgspec.json.decode(definitions, type=list[_Definition])
            self._tool_names = tuple(each.name for each in listed)
            self._definitions = definitions
        return self._definitions

    async def seed(self, row: InputRow, cookies: Cookies) -> Episode:
        await self.tools()
        _passed(await self.ask("POST", "seed_session", row.body, cookies))
        return _EpisodeThere(self, self._tool_names, cookies)

    async def resume(self, cookies: Cookies) -> Episode:
        await self.tools()
        return _EpisodeThere(self, self._tool_names, cookies)

    async def ask(
        self, method: str, path: str, body: bytes, cookies: Cookies, within_s: float = WITHIN_S
    ) -> Reply:
        """The answer, whatever its status. Raises EngineUnavailable and UpstreamError where there is none."""
        url = f"{self._url}/{path}"
        try:
            async with asyncio.timeout(within_s):
                return await self._asked(method, url, body, cookies)
        except aiohttp.ClientConnectorError as error:
            where = f"the resources server {self.name} at {self._url}"
            message = f"No connection to {where}: {error.strerror or error}."
            raise EngineUnavailable(message, retry_after_s=RETRY_AFTER_S) from error
        except TimeoutError as error:
            message = f"No answer from {url} within {within_s:.0f} s."
            raise UpstreamError(message, status=504, code="resources_timeout") from error
        except (aiohttp.ClientError, OSError) as error:
            what = str(error) or type(error).__name__
            message = f"The connection to {url} broke before its answer was complete: {what}"
            raise UpstreamError(message, status=502, code="resources_connection_lost") from error

    async def _asked(self, method: str, url: str, body: bytes, cookies: Cookies) -> Reply:
        headers = self._headers | _cookie_line(cookies)
        async with self._open().request(method, url, data=body or None, headers=headers) as answer:
            for line in answer.headers.getall("Set-Cookie", ()):
                name, _, value = line.split(";", 1)[0].partition("=")
                cookies[name.strip().encode()] = value.encode()
            return Reply(answer.status, await answer.read(), JSON + _retry_after(answer.headers))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECTED_WITHIN_S),
                trust_env=False,
            )
        return self._session


class _EpisodeThere:
    """The first call goes alone where there is no session yet: each of several would be given one of its own."""

    __slots__ = ("_environment", "_tool_names", "_cookies", "_has_session", "_first")

    def __init__(self, environment: OverHttp, tool_names: tuple[str, ...], cookies: Cookies) -> None:
        self._environment = environment
        self._tool_names = tool_names
        self._cookies = cookies
        self._has_session = cookie_name(environment.name) in cookies
        self._first = asyncio.Lock()

    async def call(self, name: str, arguments: str) -> str:
        if name not in self._tool_names:
            return unknown_tool(name, self._tool_names).text
        answer = await self._asked(name, arguments.encode() or b"{}")
        if answer.status == 422 and (refused := _refusal(answer.body)).code == TOOL_ERROR:
            return refused.message
        return _text(_passed(answer).body)

    async def _asked(self, name: str, arguments: bytes) -> Reply:
        if not self._has_session:
            async with self._first:
                if not self._has_session:
                    answer = await self._environment.ask("POST", name, arguments, self._cookies)
                    self._has_session = True
                    return answer
        return await self._environment.ask("POST", name, arguments, self._cookies)

    async def verify(self, row: InputRow, response: bytes) -> bytes:
        body = encode(row.fields | {RESPONSE: msgspec.Raw(response)})
        return on_one_line(_passed(await self._environment.ask("POST", "verify", body, self._cookies)).body)


def _retry_after(headers: Mapping[str, str]) -> Headers:
    value = headers.get("Retry-After")
    return () if value is None else ((b"retry-after", value.encode("latin-1")),)


def _passed(answer: Reply) -> Reply:
    """The answer, unless it is an error: that goes on to whoever asked the agent."""
    if answer.status != 200:
        raise Refused(answer)
    return answer


def _text(result: bytes) -> str:
    """A tool's answer as the model reads it: text as it is, anything else as JSON."""
    found: Any = msgspec.json.decode(result) if result[:1] == b'"' else result.decode()
    return str(found)


def _refusal(body: bytes) -> _Error:
    try:
        return msgspec.json.decode(body, type=_Refusal).error
    except msgspec.DecodeError:
        return _Error()


def _cookie_line(cookies: Mapping[bytes, bytes]) -> dict[str, str]:
    line = b"; ".join(b"%s=%s" % pair for pair in cookies.items())
    return {"Cookie": line.decode("latin-1")} if line else {}
