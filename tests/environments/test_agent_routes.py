"""What an agent says around a rollout: headers, health, and its `/v1/responses`."""

from __future__ import annotations

import re

from rollout_world import Client, ScriptedEngine, Starting, agent, calls, neighbours, row, says, served
from stand_in_engine import closed_port, mounted_at, serving
from talking_world import World
from yarl import URL

from local_vllm.environments.equivalence_llm_judge.app import EquivalenceLLMJudge, JudgeSettings
from local_vllm.environments.sessions import cookie_name


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


JUDGED = {"judge_model_server": "judge_model"}


async def test_health_is_a_503_while_a_model_that_is_needed_cannot_answer(engine: ScriptedEngine) -> None:
    for down in ("policy_model", "judge_model"):
        models = {"policy_model": engine, "judge_model": engine} | {down: Starting()}
        async with served(agent(neighbours(models, EquivalenceLLMJudge, JUDGED))) as client:
            answer = await client.get("/health")
        assert (answer.status, answer.error["code"]) == (503, "engine_starting")
        assert down in answer.error["message"]


async def test_health_is_a_503_while_an_environment_behind_http_cannot_answer(engine: ScriptedEngine) -> None:
    known = neighbours(engine, serve_url=f"http://127.0.0.1:{closed_port()}")
    async with served(agent(known, resources_server_in_process=False)) as client:
        answer = await client.get("/health")
    assert answer.status == 503 and "the resources server world" in answer.error["message"]


async def test_health_of_an_environment_behind_http_is_that_of_its_judge_too(engine: ScriptedEngine) -> None:
    judged = EquivalenceLLMJudge("world", JudgeSettings(**JUDGED), neighbours({"judge_model": Starting()}))
    async with serving(mounted_at("/world", judged)) as far:
        known = neighbours(engine, serve_url=far)
        async with served(agent(known, resources_server_in_process=False)) as client:
            answer = await client.get("/health")
    assert (answer.status, answer.error["code"]) == (503, "engine_starting")
    assert "judge_model" in answer.error["message"]


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


async def test_a_session_that_is_not_here_any_more_is_a_503_and_no_empty_one(
    client: Client, engine: ScriptedEngine
) -> None:
    engine.script = [calls(("say", {"word": "a"})), says("done")]
    cookie = {cookie_name("world").decode(): "of another replica"}
    client.session.cookie_jar.update_cookies(cookie, URL(client.address))
    answer = await client.post("/v1/responses", {"input": "Go"})
    assert (answer.status, engine.asked) == (503, [])
    assert answer.error["message"].startswith("world: this session is not here")


async def test_an_environment_without_sessions_answers_whatever_the_cookie(engine: ScriptedEngine) -> None:
    async with served(agent(neighbours(engine))) as client:
        cookie = {cookie_name("world").decode(): "of another replica"}
        client.session.cookie_jar.update_cookies(cookie, URL(client.address))
        answer = await client.post("/v1/responses", {"input": "Go"})
    assert (answer.status, "set-cookie" in answer.headers) == (200, False)
