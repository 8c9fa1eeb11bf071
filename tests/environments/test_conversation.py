"""A conversation with a model: its items stay as they are, with their token ids, and several turns become one."""

from __future__ import annotations

import json
import re

from rollout_world import ScriptedEngine, agent, calls, neighbours, row, says, served
from talking_world import Recorder, Silent, World

from local_vllm.environments import Conversation


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
