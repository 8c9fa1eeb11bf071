"""How a rollout through an agent ends: steps, context, an engine that gives up, and errors with their status."""

from __future__ import annotations

from typing import Any

import pytest
from rollout_world import Client, ScriptedEngine, agent, calls, neighbours, outputs, row, says, served
from stand_in_engine import closed_port
from talking_world import Picky, World, rolled_out

from local_vllm.environments import Agent, Conversation


async def test_max_steps_ends_it_as_incomplete_and_it_is_verified(engine: ScriptedEngine) -> None:
    engine.script = [calls(("say", {"word": "a"}))]
    given = row()
    given["responses_create_params"]["metadata"] = {"kept": "yes"}
    async with served(agent(neighbours(engine, World), max_steps=3)) as client:
        done = await rolled_out(client, given)
    response = done["response"]
    assert (len(engine.asked), done["words"], done["reward"]) == (3, ["a"] * 3, 0.5)
    assert (response["status"], response["completed_at"]) == ("incomplete", None)
    assert response["metadata"] == {"kept": "yes", "stopped_by": "max_steps", "max_steps": "3"}
    assert len(outputs(response)) == 3


async def test_without_max_steps_it_ends_all_the_same(client: Client, engine: ScriptedEngine) -> None:
    engine.script = [calls(("say", {"word": "a"}))]
    done = await rolled_out(client, row())
    assert (len(engine.asked), done["response"]["metadata"]["max_steps"]) == (50, "50")


async def test_a_turn_that_was_cut_off_ends_it_and_its_calls_are_not_run(
    client: Client, engine: ScriptedEngine
) -> None:
    engine.script = [calls(("say", {"word": "a"}), finish_reason="length")]
    done = await rolled_out(client, row())
    assert (len(engine.asked), done["words"]) == (1, [])
    assert done["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


OVERFLOW = (
    400,
    {
        "error": {
            "message": "This model's maximum context length is 8192 tokens. However, your request contains "
            "9000 input tokens. maximum context length is 8192 tokens (9000 in the messages)",
            "type": "BadRequestError",
            "param": "input_tokens",
            "code": 400,
        }
    },
)


@pytest.mark.parametrize("setting", ["error", "incomplete"])
async def test_a_conversation_that_outgrows_the_context_is_incomplete_and_verified(
    engine: ScriptedEngine, setting: str
) -> None:
    engine.script = [calls(("say", {"word": "a"})), OVERFLOW]
    async with served(agent(neighbours(engine, World, context_overflow=setting))) as client:
        done = await rolled_out(client, row())
    assert (done["reward"], done["words"]) == (0.5, ["a"])
    assert (done["response"]["status"], len(done["response"]["output"])) == ("incomplete", 2)
    assert done["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("setting", ["error", "incomplete"])
async def test_a_row_that_does_not_fit_at_all_is_incomplete_and_verified(
    engine: ScriptedEngine, setting: str
) -> None:
    engine.script = [OVERFLOW]
    async with served(agent(neighbours(engine, World, context_overflow=setting))) as client:
        done = await rolled_out(client, row())
    assert (done["reward"], done["response"]["status"], done["response"]["output"]) == (
        0.5,
        "incomplete",
        [],
    )


async def test_an_engine_that_gives_up_is_an_error_and_no_reward(
    client: Client, engine: ScriptedEngine
) -> None:
    engine.script = [says("so f", finish_reason="abort")]
    answer = await client.post("/run", row())
    assert (answer.status, answer.error["code"]) == (502, "response_failed")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"no JSON", "row"),
        (b"[1]", "row"),
        (b'{"question": "?"}', "responses_create_params"),
        (b'{"responses_create_params": "?"}', "responses_create_params"),
        (b'{"responses_create_params": {"input": "?", "temperature": 9}}', "temperature"),
        (b'{"responses_create_params": {"input": "\xff"}}', "row"),
        (b'{"responses_create_params": {}}', "input"),
    ],
)
async def test_a_row_that_cannot_be_rolled_out_is_a_400_that_names_the_field(
    client: Client, body: bytes, param: str
) -> None:
    answer = await client.post("/run", body)
    assert (answer.status, answer.error["param"]) == (400, param)


async def test_an_exception_in_verify_is_a_500_with_its_class(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client.post("/run", row(broken=True))
    assert (answer.status, answer.error["code"]) == (500, "ZeroDivisionError")
    assert answer.error["message"] == "world.verify raised ZeroDivisionError: no reward"
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(("mood", "status", "code"), [("bad", 400, None), ("worse", 500, "OSError")])
async def test_what_seed_session_raises_is_an_error_before_the_model_is_asked(
    engine: ScriptedEngine, mood: str, status: int, code: str | None
) -> None:
    async with served(agent(neighbours(engine, Picky))) as client:
        answer = await client.post("/run", row(mood=mood))
    assert (answer.status, answer.error["code"]) == (status, code)
    assert engine.asked == []


@pytest.mark.parametrize(("status", "expected"), [(429, 429), (500, 500), (503, 503), (404, 404)])
async def test_an_error_of_the_engine_is_passed_on(
    client: Client, engine: ScriptedEngine, status: int, expected: int
) -> None:
    engine.script = [
        (status, {"error": {"message": "Not now.", "type": "x", "param": None, "code": status}})
    ]
    answer = await client.post("/run", row())
    assert (answer.status, answer.error["message"]) == (expected, "Not now.")


@pytest.mark.parametrize("beside", [[], [("say", {"word": "a"})]])
async def test_a_tool_that_another_server_fails_is_an_error_of_the_rollout(
    client: Client, engine: ScriptedEngine, beside: list[Any]
) -> None:
    engine.script = [calls(("ask_elsewhere", {}), *beside), says("never")]
    answer = await client.post("/run", row())
    assert (answer.status, answer.headers["retry-after"], len(engine.asked)) == (503, "7", 1)


async def test_an_engine_that_is_down_is_a_503_that_says_when_to_come_back(engine: ScriptedEngine) -> None:
    known = neighbours(engine, World)
    engine.base_url = f"http://127.0.0.1:{closed_port()}/v1"
    async with served(agent(known)) as client:
        answer = await client.post("/run", row())
    assert (answer.status, answer.error["code"]) == (503, "engine_unavailable")
    assert int(answer.headers["retry-after"]) > 0


class Clumsy(Agent):
    async def drive(self, conversation: Conversation) -> None:
        raise IndexError("which turn?")


async def test_an_exception_in_an_agent_is_a_500_with_its_class(engine: ScriptedEngine) -> None:
    async with served(agent(neighbours(engine, World), Clumsy)) as client:
        answer = await client.post("/run", row())
    assert (answer.status, answer.error["code"]) == (500, "IndexError")
