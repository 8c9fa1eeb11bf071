"""A resources server over HTTP: sessions by cookie, tools, verdicts; and an agent that reaches it so."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from pydantic import BaseModel
from rollout_world import Client, ScriptedEngine, agent, calls, neighbours, outputs, row, says, served
from stand_in_engine import closed_port, mounted_at, serving

from local_vllm.environments import ResourcesServer, Rollout, Verdict, tool
from local_vllm.environments.sessions import SessionTable


class CounterRow(BaseModel):
    start: int


class Counter(ResourcesServer):
    """Counts, for each session on its own."""

    Row = CounterRow
    Session = list
    max_sessions = 3

    async def setup(self) -> None:
        self.is_set_up = True

    async def teardown(self) -> None:
        self.is_torn_down = True

    async def seed_session(self, row: CounterRow, session: list[int]) -> None:
        if row.start < 0:
            raise ArithmeticError("below zero")
        session.append(row.start)

    @tool
    async def add(self, number: int, session: list[int]) -> dict[str, int]:
        """Add to the count."""
        session.append(number)
        return {"sum": sum(session)}

    @tool
    async def tell(self, session: list[int]) -> str:
        """Tell the count."""
        return f"it is {sum(session)}"

    async def verify(self, rollout: Rollout[CounterRow, list[int]]) -> Verdict:
        if rollout.row.start == 99:
            raise LookupError("nowhere")
        return Verdict(reward=sum(rollout.session), seen=rollout.session)


class Plain(ResourcesServer):
    """Keeps nothing."""

    @tool
    async def double(self, number: int) -> int:
        return 2 * number

    async def verify(self, rollout: Rollout[Any, Any]) -> Verdict:
        return Verdict(reward=1)


def counter(engine: ScriptedEngine) -> Counter:
    return Counter("world", Counter.Settings(), neighbours(engine))


def fresh(client: Client) -> Client:
    """The same server for somebody with cookies of their own."""
    jar = aiohttp.CookieJar(unsafe=True)
    return Client(client.address, aiohttp.ClientSession(cookie_jar=jar))


RESPONSE = {"output": [], "status": "completed"}


async def test_a_session_is_seeded_used_and_verified_by_its_cookie(engine: ScriptedEngine) -> None:
    async with served(counter(engine)) as client:
        seeded = await client.post("/seed_session", row(start=10))
        added = await client.post("/add", {"number": 5})
        told = await client.post("/tell", {})
        done = await client.post("/verify", row(start=10, response=RESPONSE))
    assert (seeded.status, added.json, told.json) == (200, {"sum": 15}, "it is 15")
    assert (done.json["reward"], done.json["seen"], done.json["start"]) == (15.0, [10, 5], 10)
    assert done.json["response"] == RESPONSE


async def test_sessions_do_not_see_each_other(engine: ScriptedEngine) -> None:
    async with served(counter(engine)) as one:
        other = fresh(one)
        for client, start in ((one, 10), (other, 100)):
            await client.post("/seed_session", row(start=start))
        await one.post("/add", {"number": 1})
        await other.post("/add", {"number": 2})
        sums = [(await client.post("/add", {"number": 0})).json["sum"] for client in (one, other)]
        await other.session.close()
    assert sums == [11, 102]


async def test_a_call_without_a_cookie_begins_a_session(engine: ScriptedEngine) -> None:
    async with served(counter(engine)) as client:
        await client.post("/add", {"number": 1})
        assert (await client.post("/add", {"number": 1})).json == {"sum": 2}


async def test_a_session_that_made_room_for_others_is_a_503_and_no_new_one(engine: ScriptedEngine) -> None:
    app = counter(engine)
    async with served(app) as first:
        await first.post("/seed_session", row(start=1))
        for _ in range(3):
            first_cookie = fresh(first)
            await first_cookie.post("/seed_session", row(start=2))
            await first_cookie.session.close()
        answer = await first.post("/add", {"number": 1})
    assert len(app.sessions) == 3
    assert (answer.status, answer.error["code"]) == (503, "engine_unavailable")
    assert "this session is not here" in answer.error["message"]


async def test_a_session_ends_with_its_verdict(engine: ScriptedEngine) -> None:
    app = counter(engine)
    async with served(app) as client:
        await client.post("/seed_session", row(start=1))
        await client.post("/verify", row(start=1, response=RESPONSE))
    assert len(app.sessions) == 0


async def test_a_session_that_could_not_be_seeded_is_not_kept(engine: ScriptedEngine) -> None:
    app = counter(engine)
    async with served(app) as client:
        answer = await client.post("/seed_session", row(start=-1))
    assert (answer.status, answer.error["code"], len(app.sessions)) == (500, "ArithmeticError", 0)


def test_a_session_is_dropped_once_it_was_idle_for_too_long() -> None:
    now = [0.0]
    table = SessionTable(10, 60, list, clock=lambda: now[0])
    idle, _ = table.open()
    used, session = table.open()
    now[0] = 50
    assert table.find(used) is session
    now[0] = 70
    assert (table.find(idle), table.find(used), len(table)) == (None, session, 1)


def test_the_session_that_was_used_longest_ago_makes_room() -> None:
    table = SessionTable(2, 60, list)
    first, session = table.open()
    second, _ = table.open()
    table.find(first)
    table.open()
    assert table.find(first) is session
    assert table.find(second) is None


async def test_an_environment_without_sessions_keeps_none_and_answers_any_cookie(
    engine: ScriptedEngine,
) -> None:
    app = Plain("world", Plain.Settings(), neighbours(engine))
    async with served(app) as client:
        seeded = await client.post("/seed_session", row())
        doubled = await client.post("/double", {"number": 2})
        done = await client.post("/verify", row(response=RESPONSE))
    assert "set-cookie" not in seeded.headers
    assert (doubled.json, done.json["reward"], len(app.sessions)) == (4, 1.0, 0)


async def test_the_tools_are_listed_as_openai_has_them(engine: ScriptedEngine) -> None:
    async with served(counter(engine)) as client:
        tools = (await client.get("/tools")).json
    assert [(each["type"], each["name"], each["strict"]) for each in tools] == [
        ("function", "add", True),
        ("function", "tell", True),
    ]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/add", {"number": "1"}, 422, "tool_error"),
        ("/add", b"no JSON", 422, "tool_error"),
        ("/subtract", {}, 404, "not_found"),
        ("/seed_session", {"start": 1}, 400, "missing_required_parameter"),
        ("/seed_session", row(start="one"), 400, "invalid_row"),
        ("/seed_session", row(), 400, "invalid_row"),
        ("/verify", row(start=1), 400, None),
        ("/verify", row(start=99, response=RESPONSE), 500, "LookupError"),
    ],
)
async def test_what_goes_wrong_over_http_has_a_status_and_a_code(
    engine: ScriptedEngine, path: str, body: Any, status: int, code: str | None
) -> None:
    async with served(counter(engine)) as client:
        answer = await client.post(path, body)
    assert (answer.status, answer.error["code"]) == (status, code)


async def test_setup_and_teardown_are_called_around_the_life_of_a_server(engine: ScriptedEngine) -> None:
    app = counter(engine)
    async with served(app) as client:
        assert app.is_set_up
        assert (await client.get("/health")).status == 200
    assert app.is_torn_down


async def test_an_environment_inside_an_agent_is_set_up_and_torn_down_with_it(
    engine: ScriptedEngine,
) -> None:
    known = neighbours(engine, Counter)
    async with served(agent(known)):
        assert known.resources("world").is_set_up
    assert known.resources("world").is_torn_down


class Shared(Plain):
    Session = {}  # type: ignore[assignment]


def test_one_session_for_all_rollouts_is_refused_when_the_environment_is_made(
    engine: ScriptedEngine,
) -> None:
    with pytest.raises(TypeError, match="Session has to make a session"):
        Shared("world", Shared.Settings(), neighbours(engine))


# ---- an agent whose environment is behind HTTP

SCRIPT = [
    calls(("add", {"number": 1}), ("add", {"number": 2})),
    calls(("tell", {}), ("add", {"number": "x"}), ("fly", {}), ("tell", "")),
    says("done"),
]


async def rolled_out(engine: ScriptedEngine, in_process: bool) -> dict[str, Any]:
    engine.asked.clear()
    engine.script = list(SCRIPT)
    async with serving(mounted_at("/world", counter(engine))) as far:
        known = neighbours(engine, Counter, serve_url=far)
        async with served(agent(known, resources_server_in_process=in_process)) as client:
            answer = await client.post("/run", row(start=10, id=7))
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


async def test_an_environment_behind_http_makes_the_same_rollout_as_one_in_the_process(
    engine: ScriptedEngine,
) -> None:
    near, far = [await rolled_out(engine, in_process) for in_process in (True, False)]
    assert near["seen"] == far["seen"] == [10, 1, 2]
    assert near["reward"] == far["reward"] == 13
    assert far["id"] == 7
    texts = [[item["output"] for item in outputs(done["response"])] for done in (near, far)]
    assert texts[0][2] == "it is 13"
    assert texts[0] == texts[1]


async def test_calls_beside_each_other_that_come_first_share_one_session(engine: ScriptedEngine) -> None:
    app = counter(engine)
    engine.script = [calls(*[("add", {"number": 1})] * 3), calls(("tell", {})), says("done")]
    async with serving(mounted_at("/world", app)) as far:
        known = neighbours(engine, serve_url=far)
        async with served(agent(known, resources_server_in_process=False)) as client:
            answer = await client.post("/v1/responses", {"input": "Go"})
    assert outputs(answer.json)[3]["output"] == "it is 3"
    assert len(app.sessions) == 1


async def test_an_agent_asks_for_the_tools_once(engine: ScriptedEngine) -> None:
    asked: list[str] = []
    app = counter(engine)

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope.get("path", ""))
        await app(scope, receive, send)

    async with serving(mounted_at("/world", counted)) as far:
        known = neighbours(engine, serve_url=far)
        async with served(agent(known, resources_server_in_process=False)) as client:
            for _ in range(3):
                assert (await client.post("/run", row(start=1))).status == 200
    assert asked.count("/world/tools") == 1


@pytest.mark.parametrize(
    ("given", "status", "code"), [(row(start=-1), 500, "ArithmeticError"), (row(), 400, "invalid_row")]
)
async def test_errors_of_an_environment_behind_http_keep_their_status(
    engine: ScriptedEngine, given: dict[str, Any], status: int, code: str
) -> None:
    async with serving(mounted_at("/world", counter(engine))) as far:
        known = neighbours(engine, serve_url=far)
        async with served(agent(known, resources_server_in_process=False)) as client:
            answer = await client.post("/run", given)
    assert (answer.status, answer.error["code"]) == (status, code)


async def test_an_environment_that_is_down_is_a_503_that_names_it(engine: ScriptedEngine) -> None:
    known = neighbours(engine, serve_url=f"http://127.0.0.1:{closed_port()}")
    async with served(agent(known, resources_server_in_process=False)) as client:
        answer = await client.post("/run", row())
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert "resources server world" in answer.error["message"]


async def test_an_environment_that_forgets_a_session_fails_the_rollout_and_tells_the_model_nothing(
    engine: ScriptedEngine,
) -> None:
    app = counter(engine)

    async def forgetful(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/world/add":
            for _ in range(app.max_sessions):
                app.sessions.open()
        await app(scope, receive, send)

    engine.script = list(SCRIPT)
    async with serving(mounted_at("/world", forgetful)) as far:
        known = neighbours(engine, serve_url=far)
        async with served(agent(known, resources_server_in_process=False)) as client:
            answer = await client.post("/run", row(start=1))
    assert (answer.status, answer.headers["retry-after"]) == (503, "0")
    assert json.loads(answer.body)["error"]["message"].startswith("world: this session is not here")
