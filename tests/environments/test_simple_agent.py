"""One rollout through `simple_agent`: the loop, what goes to the model, and what comes out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from rollout_world import Client, ScriptedEngine, agent, calls, neighbours, outputs, row, says, served
from talking_world import TOOLS, Recorder, World, rolled_out


async def test_a_rollout_without_calls_is_one_turn(client: Client, engine: ScriptedEngine) -> None:
    done = await rolled_out(client, row())
    assert (done["reward"], done["text"], len(engine.asked)) == (0.5, "Hello", 1)
    assert done["response"]["status"] == "completed"


async def test_the_rollout_goes_on_until_the_model_calls_nothing(
    client: Client, engine: ScriptedEngine
) -> None:
    engine.script = [calls(("say", {"word": "a"})), calls(("say", {"word": "b"})), says("done")]
    done = await rolled_out(client, row())
    assert (done["words"], done["text"]) == (["a", "b"], "done")
    assert [item["type"] for item in done["response"]["output"]] == [
        "function_call",
        "function_call_output",
        "function_call",
        "function_call_output",
        "message",
    ]
    assert engine.tool_texts() == ["heard a", "heard b"]


async def test_the_calls_of_a_turn_run_beside_each_other_and_are_answered_in_order(
    client: Client, engine: ScriptedEngine
) -> None:
    engine.script = [calls(("meet", {"name": "first"}), ("meet", {"name": "second"})), says("done")]
    done = await rolled_out(client, row())
    made = outputs(done["response"], "function_call")
    answered = outputs(done["response"])
    assert [item["output"] for item in answered] == ["met first", "met second"]
    assert [item["call_id"] for item in answered] == [item["call_id"] for item in made]


@pytest.mark.parametrize(
    ("called", "told"),
    [
        (("say", "no JSON"), "Error: say was not called, since its arguments do not fit: Invalid JSON"),
        (("say", {"word": 1}), "Error: say was not called, since its arguments do not fit: word: "),
        (("fail", {}), "Error: fail failed: KeyError: 'lost'"),
        (("refuse", {}), "Error: refuse failed: RequestError: Not like this."),
        (
            ("fly", {}),
            "Error: there is no tool 'fly' here. The tools are: say, meet, fail, refuse, ask_elsewhere.",
        ),
    ],
)
async def test_a_call_that_goes_wrong_is_told_to_the_model_and_the_rollout_goes_on(
    client: Client, engine: ScriptedEngine, called: tuple[str, Any], told: str
) -> None:
    engine.script = [calls(called), says("I see")]
    done = await rolled_out(client, row())
    assert (done["reward"], done["text"]) == (0.5, "I see")
    assert engine.tool_texts()[0].startswith(told)


async def test_a_tool_of_the_row_that_the_environment_lacks_is_told_to_the_model(
    client: Client, engine: ScriptedEngine
) -> None:
    engine.script = [calls(("fly", {})), says("I see")]
    given = row()
    given["responses_create_params"]["tools"] = [
        {"type": "function", "name": "fly", "parameters": {"type": "object"}, "strict": False}
    ]
    await rolled_out(client, given)
    assert [each["function"]["name"] for each in engine.asked[0]["body"]["tools"]] == ["fly"]
    assert engine.tool_texts()[0].startswith("Error: there is no tool 'fly'")


@pytest.mark.parametrize("absent", [{}, {"tools": None}])
async def test_a_row_without_tools_gets_those_of_the_environment(
    client: Client, engine: ScriptedEngine, absent: dict[str, Any]
) -> None:
    given = row()
    given["responses_create_params"] |= absent
    done = await rolled_out(client, given)
    assert [each["function"]["name"] for each in engine.asked[0]["body"]["tools"]] == list(TOOLS)
    assert done["responses_create_params"] == given["responses_create_params"]


async def test_a_row_with_an_empty_list_of_tools_gets_none(client: Client, engine: ScriptedEngine) -> None:
    given = row()
    given["responses_create_params"]["tools"] = []
    await rolled_out(client, given)
    assert "tools" not in engine.asked[0]["body"]


async def test_the_row_comes_out_as_it_went_in(client: Client) -> None:
    request = b'{"input" : "Go", "temperature":0.50, "metadata":{"a":"\\u00e9"}}'
    body = (
        b'{"id": 12345678901234567890, "x" : [1.10, {"y":null}], "responses_create_params": %s}' % request
    )
    answer = await client.post("/run", body)
    assert answer.body.startswith(
        b'{"id":12345678901234567890,"x":[1.10, {"y":null}],"responses_create_params":'
    )
    assert request in answer.body


async def test_a_rollout_is_on_one_line_whatever_the_row_looked_like(client: Client) -> None:
    answer = await client.post("/run", json.dumps(row(table={"a": [1, 2]}), indent=2).encode())
    assert b"\n" not in answer.body
    assert answer.json["table"] == {"a": [1, 2]}


async def test_a_reward_or_response_that_the_row_has_is_replaced(client: Client) -> None:
    done = await rolled_out(client, row(reward=7, response={"old": True}))
    assert done["reward"] == 0.5
    assert "old" not in done["response"]


async def test_the_usage_of_all_turns_is_summed(client: Client, engine: ScriptedEngine) -> None:
    first = calls(("say", {"word": "a"}))
    first["usage"] = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 64},
    }
    engine.script = [first, says("done")]
    usage = (await rolled_out(client, row()))["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (103, 22, 125)
    assert usage["input_tokens_details"]["cached_tokens"] == 64


async def test_the_whole_conversation_goes_into_the_next_question(
    client: Client, engine: ScriptedEngine
) -> None:
    turn = calls(("say", '{"word":  "a"}'))
    turn["choices"][0]["message"]["reasoning"] = "I should say a."
    engine.script = [turn, says("done")]
    await rolled_out(client, row("Say a"))
    user, assistant, tool_message = engine.messages
    assert user["content"] == "Say a"
    assert assistant["reasoning"] == "I should say a."
    assert assistant["tool_calls"][0]["function"]["arguments"] == '{"word":  "a"}'
    assert tool_message["content"] == "heard a"


async def test_a_text_as_input_is_the_users_message(client: Client, engine: ScriptedEngine) -> None:
    await rolled_out(client, {"responses_create_params": {"input": "Say \u00e9"}})
    assert engine.messages == [{"role": "user", "content": "Say \u00e9"}]


async def test_a_rollout_is_never_streamed(client: Client, engine: ScriptedEngine) -> None:
    given = row()
    given["responses_create_params"]["stream"] = True
    done = await rolled_out(client, given)
    assert "stream" not in engine.asked[0]["body"]
    assert done["responses_create_params"]["stream"] is True


@pytest.mark.parametrize(("given", "stored"), [({}, False), ({"store": True}, True)])
async def test_the_answers_of_a_rollout_are_not_kept_unless_the_row_says_so(
    client: Client, given: dict[str, Any], stored: bool
) -> None:
    asked = row()
    asked["responses_create_params"] |= given
    assert (await rolled_out(client, asked))["response"]["store"] is stored


async def test_rollouts_at_the_same_time_do_not_see_each_other(
    client: Client, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say_it_twice(question: dict[str, Any]) -> dict[str, Any]:
        word = question["messages"][0]["content"]
        said = [message for message in question["messages"] if message["role"] == "tool"]
        return says(word) if len(said) == 2 else calls(("say", {"word": word}))

    monkeypatch.setattr(engine, "answer", say_it_twice)
    words = [f"word{number}" for number in range(20)]
    done = await asyncio.gather(*(rolled_out(client, row(word, id=word)) for word in words))
    assert [(each["id"], each["words"], each["text"]) for each in done] == [
        (word, [word] * 2, word) for word in words
    ]


async def test_a_rollout_takes_no_cookies_from_outside_and_gives_none() -> None:
    model = Recorder(b'{"output":[],"status":"completed"}')
    known = neighbours({}, World)
    known.model = lambda name: model  # type: ignore[method-assign,assignment,return-value]
    async with served(agent(known)) as client:
        client.session.cookie_jar.update_cookies({"turn": "7"})
        answer = await client.post("/run", row())
    assert answer.status == 200
    assert model.given == [{}]
    assert "set-cookie" not in answer.headers
