"""What an agent says around a rollout: headers, health, and its `/v1/responses`."""

from __future__ import annotations

import re

from rollout_world import Client, ScriptedEngine, agent, calls, neighbours, row, says, served
from talking_world import Recorder, World


async def test_the_answer_says_how_long_it_took_and_which_model_answered(client: Client) -> None:
    headers = (await client.post("/run", row())).headers
    pattern = r"model;dur=[\d.]+, tools;dur=[\d.]+, verify;dur=[\d.]+, total;dur=[\d.]+"
    assert re.fullmatch(pattern, headers["server-timing"])
    assert headers["x-model-server"] == "policy_model"


async def test_the_time_of_the_model_is_that_of_the_engine(client: Client, engine: ScriptedEngine) -> None:
    engine.delay_s = 0.1
    timing = (await client.post("/run", row())).headers["server-timing"]
    model, tools, verify, total = map(float, re.findall(r"dur=([\d.]+)", timing))
    assert 100 <= model <= total
    assert tools == 0 and verify < 100


async def test_health_is_that_of_the_model_behind_it(client: Client) -> None:
    answer = await client.get("/health")
    assert (answer.status, answer.json["model_server"]) == (200, "policy_model")


async def test_health_is_a_503_while_the_model_cannot_answer() -> None:
    model = Recorder()
    known = neighbours({}, World)
    known.model = lambda name: model  # type: ignore[method-assign,assignment,return-value]
    async with served(agent(known)) as client:
        answer = await client.get("/health")
    assert (answer.status, answer.error["code"]) == (503, "engine_starting")
    assert "policy_model" in answer.error["message"]


async def test_the_loop_alone_answers_a_responses_request(client: Client, engine: ScriptedEngine) -> None:
    engine.script = [calls(("say", {"word": "a"})), says("done")]
    answer = await client.post("/v1/responses", {"input": "Go"})
    assert [item["type"] for item in answer.json["output"]] == [
        "function_call",
        "function_call_output",
        "message",
    ]
    assert "reward" not in answer.json


async def test_a_client_that_keeps_its_cookie_keeps_its_session(engine: ScriptedEngine) -> None:
    known = neighbours(engine, World)
    async with served(agent(known)) as client:
        for _ in range(2):
            engine.asked.clear()
            engine.script = [calls(("say", {"word": "a"})), says("done")]
            await client.post("/v1/responses", {"input": "Go"})
        assert len(known.resources("world").sessions) == 1
        client.session.cookie_jar.clear()
        await client.post("/v1/responses", {"input": "Go"})
        assert len(known.resources("world").sessions) == 2


async def test_a_streamed_answer_is_refused_by_name(client: Client) -> None:
    answer = await client.post("/v1/responses", {"input": "Go", "stream": True})
    assert (answer.status, answer.error["param"]) == (400, "stream")
