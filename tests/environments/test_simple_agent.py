"""One rollout through `simple_agent`: the loop, what goes to the model, and what comes out."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel
from rollout_world import Client, ScriptedEngine, agent, calls, neighbours, outputs, row, says, served
from stand_in_engine import closed_port

from local_vllm.environments import Agent, Conversation, ResourcesServer, Rollout, Verdict, tool
from local_vllm.errors import EngineUnavailable, RequestError
from local_vllm.serving.endpoints import NotReady


class Seen(BaseModel):
    """What the tools of one rollout share."""

    words: list[str] = []


class World(ResourcesServer):
    """Tools that wait for each other, remember, and fail."""

    Session = Seen

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.together = asyncio.Barrier(2)

    @tool
    async def say(self, word: str, session: Seen) -> str:
        session.words.append(word)
        return f"heard {word}"

    @tool
    async def meet(self, name: str) -> str:
        """Returns once two are here."""
        async with asyncio.timeout(5):
            await self.together.wait()
        await asyncio.sleep(0.02 if name == "first" else 0)
        return f"met {name}"

    @tool
    async def fail(self) -> None:
        raise KeyError("lost")

    @tool
    async def refuse(self) -> None:
        raise RequestError("Not like this.")

    @tool
    async def ask_elsewhere(self) -> None:
        raise EngineUnavailable("The other model is down.", retry_after_s=7)

    async def verify(self, rollout: Rollout[dict[str, Any], Seen]) -> Verdict:
        if rollout.row.get("broken"):
            raise ZeroDivisionError("no reward")
        return Verdict(
            reward=0.5,
            words=rollout.session.words,
            text=rollout.text,
            calls=[call.name for call in rollout.calls],
        )


TOOLS = ("say", "meet", "fail", "refuse", "ask_elsewhere")


class Picky(ResourcesServer):
    """Its seed_session refuses some rows and breaks on others."""

    async def seed_session(self, row: dict[str, Any], session: dict[str, Any]) -> None:
        if row["mood"] == "bad":
            raise RequestError("The row is in a bad mood.", param="mood")
        raise OSError("no disk")

    async def verify(self, rollout: Rollout[Any, Any]) -> Verdict:
        return Verdict(reward=1)


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[Client]:
    async with served(agent(neighbours(engine, World))) as found:
        yield found


async def rolled_out(client: Client, given: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post("/run", given)
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


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


# ---- how it ends


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


# ---- token ids


async def test_token_ids_reach_the_result_byte_for_byte_and_the_next_turn_as_an_item(
    engine: ScriptedEngine,
) -> None:
    turns = [calls(("say", {"word": "a"})), says("done")]
    for number, turn in enumerate(turns):
        turn["prompt_token_ids"] = [number, 2**40, 3]
        turn["choices"][0]["token_ids"] = [7, number]
        turn["choices"][0]["logprobs"] = {
            "content": [
                {"token": "token_id:7", "logprob": -0.10000000000000001, "top_logprobs": []},
                {"token": f"token_id:{number}", "logprob": -1e-05, "top_logprobs": []},
            ]
        }
    engine.script = turns  # type: ignore[assignment]
    alone = neighbours(engine, World, return_token_id_information=True)
    async with served(agent(alone)) as client:
        answer = await client.post("/run", row())
    for number in (0, 1):
        assert re.search(rb'"prompt_token_ids":\[%d, ?1099511627776, ?3\]' % number, answer.body)
        assert re.search(rb'"generation_token_ids":\[7, ?%d\]' % number, answer.body)
    items = answer.json["response"]["output"]
    assert [item.get("generation_log_probs") for item in items] == [[-0.1, -1e-05], None, [-0.1, -1e-05]]


class Recorder:
    """A model that answers with given bytes, and keeps the questions."""

    name = "policy_model"

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []
        self.given: list[dict[bytes, bytes]] = []

    async def respond(self, body: bytes, cookies: dict[bytes, bytes]) -> bytes:
        self.asked.append(body)
        self.given.append(dict(cookies))
        cookies[b"turn"] = b"%d" % len(self.asked)
        return self.answers.pop(0)


    def state(self) -> NotReady:
        return NotReady("starting", "loading weights", 5)


class Silent:
    """An episode whose tools answer nothing."""

    async def call(self, name: str, arguments: str) -> str:
        return ""

    async def verify(self, row: Any, response: bytes) -> bytes:
        return response


async def test_an_item_of_the_model_is_never_written_anew() -> None:
    item = (
        b'{ "type":"function_call","weird" : [1.50,  2e3],"call_id":"c","name":"n","arguments":"\\u0061" }'
    )
    model = Recorder(
        b'{"id":"r1","output":[%s],"status":"completed"}' % item,
        b'{"id":"r2","output":[],"status":"completed"}',
    )
    conversation = Conversation(model, Silent(), {}, {}, b"[]")  # type: ignore[arg-type]
    turn = await conversation.ask()
    await conversation.run(turn.calls)
    await conversation.ask()
    assert item in model.asked[1]
    assert item in conversation.response()


async def test_one_turn_is_the_models_own_answer() -> None:
    body = b'{"id":"r1", "output":[ {"type":"message"} ] ,"status":"completed","usage":{"a":1}}'
    conversation = Conversation(Recorder(body), Silent(), {}, {}, b"[]")  # type: ignore[arg-type]
    await conversation.ask()
    assert conversation.response() == body


async def test_two_turns_without_items_are_summed_too() -> None:
    model = Recorder(*[b'{"output":[],"status":"completed","usage":{"total_tokens":3}}'] * 2)
    conversation = Conversation(model, Silent(), {}, {}, b"[]")  # type: ignore[arg-type]
    await conversation.ask()
    await conversation.ask()
    assert json.loads(conversation.response())["usage"] == {"total_tokens": 6}


async def test_cookies_of_the_model_go_back_to_it() -> None:
    model = Recorder(*[b'{"output":[],"status":"completed"}'] * 2)
    cookies: dict[bytes, bytes] = {}
    conversation = Conversation(model, Silent(), cookies, {}, b"[]")  # type: ignore[arg-type]
    await conversation.ask()
    assert cookies == {b"turn": b"1"}


async def test_an_item_of_the_agents_own_goes_to_the_model_and_into_the_result() -> None:
    model = Recorder(*[b'{"output":[{"type":"message"}],"status":"completed"}'] * 2)
    conversation = Conversation(model, Silent(), {}, {}, b"[]")  # type: ignore[arg-type]
    await conversation.ask()
    conversation.add({"role": "user", "content": "And then?"})
    await conversation.ask()
    assert b'{"type":"message"},{"role":"user","content":"And then?"}]' in model.asked[1]
    assert [item.get("role") for item in json.loads(conversation.response())["output"]] == [
        None,
        "user",
        None,
    ]


async def test_an_answer_on_several_lines_becomes_one() -> None:
    pretty = json.dumps({"output": [], "status": "completed"}, indent=1).encode()
    conversation = Conversation(Recorder(pretty), Silent(), {}, {}, b"[]")  # type: ignore[arg-type]
    await conversation.ask()
    assert b"\n" not in conversation.response()


# ---- errors


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


# ---- what stands around the answer


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


# ---- /v1/responses


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
