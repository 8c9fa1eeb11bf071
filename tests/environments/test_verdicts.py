"""What `verify` sees of a rollout, and what may stand in its verdict."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from rollout_world import ScriptedEngine, neighbours

from local_vllm.environments import Call, EnvironmentFailure, ResourcesServer, Rollout, Verdict
from local_vllm.environments.rows import read_row
from local_vllm.serving.neighbours import Neighbours


def message(*texts: str, kind: str = "output_text", role: str = "assistant") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text} for text in texts]}


def call(name: str, arguments: str, number: int = 1) -> dict[str, Any]:
    return {"type": "function_call", "name": name, "arguments": arguments, "call_id": f"c{number}"}


def result(output: Any, number: int = 1) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"c{number}", "output": output}


REASONING = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}


def rollout(output: list[Any], request: Any = None, status: str = "completed") -> Rollout[Any, Any]:
    response = json.dumps({"output": output, "status": status, "usage": None}).encode()
    return Rollout({}, {}, request=msgspec.Raw(json.dumps(request or {}).encode()), response=response)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ([], ""),
        ([message("a")], "a"),
        ([message("a", "b")], "ab"),
        ([REASONING, message("a")], "a"),
        ([message("a"), REASONING], "a"),
        ([message("a"), message("b")], "b"),
        ([message("let me look"), call("f", "{}")], ""),
        ([message("let me look"), call("f", "{}"), result("x")], ""),
        ([call("f", "{}"), result("x"), message("done")], "done"),
        ([message("no", kind="refusal")], ""),
    ],
)
def test_the_text_is_what_the_model_said_last(output: list[Any], text: str) -> None:
    assert rollout(output).text == text


def test_calls_are_decoded_and_have_what_was_answered() -> None:
    output = [
        call("f", '{"a": 1}', 1),
        call("g", "no JSON", 2),
        result("two", 2),
        result([{"type": "x"}], 1),
    ]
    assert rollout(output).calls == (
        Call("f", {"a": 1}, '[{"type": "x"}]'),
        Call("g", None, "two"),
    )


@pytest.mark.parametrize(
    ("given", "question"),
    [
        ("What?", "What?"),
        ([{"role": "system", "content": "S"}, {"role": "user", "content": "What?"}], "What?"),
        (
            [
                message("First", kind="input_text", role="user"),
                message("ok"),
                {"role": "user", "content": "Then"},
            ],
            "Then",
        ),
        ([], ""),
    ],
)
def test_the_question_is_the_last_message_of_the_user(given: Any, question: str) -> None:
    assert rollout([], {"input": given}).question == question


def test_the_whole_response_is_there_for_who_wants_it() -> None:
    found = rollout([{"type": "message", "generation_token_ids": [1, 2]}], status="incomplete")
    assert found.response["output"][0]["generation_token_ids"] == [1, 2]
    assert found.status == "incomplete"


class Judged(ResourcesServer):
    """Returns what a test has put there."""

    given: Any = None

    async def verify(self, rollout: Rollout[Any, Any]) -> Verdict:
        found = self.given()
        return found  # type: ignore[no-any-return]


@pytest.fixture
def server(engine: ScriptedEngine) -> Judged:
    known: Neighbours = neighbours(engine)
    return Judged("world", Judged.Settings(), known)


ROW = read_row(b'{"answer": 4.0, "responses_create_params": {"input": "?"}}')
RESPONSE = b'{"output": []}'


async def verified(server: Judged, given: Any) -> dict[str, Any]:
    server.given = given
    found: dict[str, Any] = json.loads(await server.episodes.verify(ROW, RESPONSE, {}))
    return found


@pytest.mark.parametrize(("reward", "written"), [(1, 1.0), (True, 1.0), (False, 0.0), (-2.5, -2.5)])
async def test_a_reward_is_a_number(server: Judged, reward: Any, written: float) -> None:
    found = await verified(server, lambda: Verdict(reward=reward))
    assert found == {
        "answer": 4.0,
        "responses_create_params": {"input": "?"},
        "response": {"output": []},
        "reward": written,
    }


async def test_further_fields_stand_beside_the_reward(server: Judged) -> None:
    found = await verified(server, lambda: Verdict(reward=1, why={"so": [1]}, answer=4))
    assert (found["why"], found["answer"]) == ({"so": [1]}, 4.0)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (lambda: 1.0, "TypeError"),
        (lambda: None, "TypeError"),
        (lambda: Verdict(reward=float("nan")), "ValidationError"),
        (lambda: Verdict(reward=float("inf")), "ValidationError"),
        (lambda: Verdict(reward="much"), "ValidationError"),  # type: ignore[arg-type]
        (lambda: Verdict(reward=1, thing=object()), "PydanticSerializationError"),
        (lambda: Verdict(reward=1, answer=5), "verdict_field_taken"),
        (lambda: Verdict(reward=1, response={}), "verdict_field_taken"),
        (lambda: Verdict(reward=1, responses_create_params={}), "verdict_field_taken"),
    ],
)
async def test_what_is_no_verdict_is_an_error_of_the_rollout(server: Judged, given: Any, code: str) -> None:
    with pytest.raises(EnvironmentFailure) as failure:
        await verified(server, given)
    assert failure.value.code == code
    assert "world.verify" in str(failure.value)


async def test_an_environment_without_verify_says_so(engine: ScriptedEngine) -> None:
    bare = ResourcesServer("world", ResourcesServer.Settings(), neighbours(engine))
    with pytest.raises(EnvironmentFailure, match="an environment has to define verify"):
        await bare.episodes.verify(ROW, RESPONSE, {})
