"""Agents and environments around a stand-in engine that says, turn by turn, what a test has written."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from servers_under_test import model_server, over
from stand_in_engine import StandInEngine, chat_answer, mounted_at, serving

from local_vllm.environments import Agent, ResourcesServer
from local_vllm.environments.simple_agent.app import SimpleAgent
from local_vllm.protocol import ConverterSettings
from local_vllm.serving.admission import MAX_IN_FLIGHT
from local_vllm.serving.endpoints import Endpoint, NotReady
from local_vllm.serving.neighbours import Neighbours

Turn = dict[str, Any]
_numbers = itertools.count()


def says(text: str, **choice: Any) -> Turn:
    """A turn that ends the loop."""
    answer = chat_answer(text)
    answer["choices"][0] |= choice
    return answer


def calls(*called: tuple[str, Any], **choice: Any) -> Turn:
    """A turn of tool calls; arguments that are no text are written as JSON."""
    answer = chat_answer("")
    answer["choices"][0]["message"]["tool_calls"] = [
        {
            "id": f"call_{next(_numbers)}",
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for name, given in called
    ]
    answer["choices"][0] |= {"finish_reason": "tool_calls"} | choice
    return answer


class ScriptedEngine(StandInEngine):
    """Answers with the turns of `script`, the last one again and again; a turn may have a status."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[Turn | tuple[int, Turn]] = [says("Hello")]

    async def _answer(self, path: str, send: Callable) -> None:
        turn = self.answer(self.asked[-1]["body"])
        self.status, found = turn if isinstance(turn, tuple) else (200, turn)
        self.body = re.sub(r"call_\d+", lambda _: f"call_{next(_numbers)}", json.dumps(found)).encode()
        await super()._answer(path, send)

    def answer(self, question: dict[str, Any]) -> Turn | tuple[int, Turn]:
        """The next turn, whatever the question was."""
        return self.script[min(len(self.asked), len(self.script)) - 1]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The chat messages of the latest question."""
        found: list[dict[str, Any]] = self.asked[-1]["body"]["messages"]
        return found

    def tool_texts(self) -> list[str]:
        """What the tools told the model, as the latest question has it."""
        return [message["content"] for message in self.messages if message["role"] == "tool"]


class Starting:
    """Where an engine will be that loads its weights."""

    def current(self) -> NotReady:
        return NotReady("starting", "loading weights", 5)

    def lost(self, endpoint: Endpoint) -> NotReady:
        return self.current()

    async def settled(self, within_s: float) -> NotReady:
        return self.current()

    async def start(self) -> None: ...

    async def close(self) -> None: ...


@asynccontextmanager
async def scripted_engine() -> AsyncIterator[ScriptedEngine]:
    stand_in = ScriptedEngine()
    async with serving(stand_in, lifespan="off") as address:
        stand_in.base_url = f"{address}/v1"
        yield stand_in


def neighbours(
    models: Mapping[str, StandInEngine | Starting] | StandInEngine,
    environment: type[ResourcesServer] = ResourcesServer,
    settings: Mapping[str, Any] = {},
    serve_url: str = "http://127.0.0.1:9",
    max_in_flight: int = MAX_IN_FLIGHT,
    **converter: Any,
) -> Neighbours:
    """`models` by name, or the one engine of all of them; `environment` is made of `settings`."""

    def make_model(name: str) -> Any:
        model = models if isinstance(models, StandInEngine) else models[name]
        source = model if isinstance(model, Starting) else over(model)
        return model_server(source, name=name, settings=ConverterSettings(**converter), max_in_flight=max_in_flight)

    def make_app(name: str, known: Neighbours) -> ResourcesServer:
        return environment(name, environment.Settings(**settings), known)

    return Neighbours(make_model, make_app, serve_url)


def agent(known: Neighbours, kind: type[Agent] = SimpleAgent, **settings: Any) -> Agent:
    settings = {"model_server": "policy_model", "resources_server": "world"} | settings
    return kind("world_simple_agent", kind.Settings(**settings), known)


class Client:
    """Calls one application; keeps the cookies that it is given."""

    def __init__(self, address: str, session: aiohttp.ClientSession) -> None:
        self.address = address
        self.session = session

    async def post(self, path: str, body: Any) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        async with self.session.post(self.address + path, data=data, headers=headers) as answer:
            return Answer(answer.status, await answer.read(), answer.headers)

    async def get(self, path: str) -> Answer:
        async with self.session.get(self.address + path) as answer:
            return Answer(answer.status, await answer.read(), answer.headers)


class Answer:
    """An HTTP answer; its JSON on demand."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found


@asynccontextmanager
async def served(app: Any, root: str = "/app") -> AsyncIterator[Client]:
    """The application under uvicorn, mounted as Ray Serve does it."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with serving(mounted_at(root, app)) as address, aiohttp.ClientSession(cookie_jar=jar) as session:
        yield Client(address + root, session)


def row(text: str = "Go", **fields: Any) -> dict[str, Any]:
    return {"responses_create_params": {"input": [{"role": "user", "content": text}]}, **fields}


def outputs(response: Mapping[str, Any], kind: str = "function_call_output") -> list[dict[str, Any]]:
    return [item for item in response["output"] if item["type"] == kind]
