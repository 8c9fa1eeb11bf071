"""Rollouts whose model has no place for one request more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rollout_world import ScriptedEngine, agent, calls, neighbours, row, says, served
from talking_world import World, rolled_out

from local_vllm.serving import neighbours as asked_in_process

CROWDED = (429, {"error": {"message": "Not now.", "type": "x", "param": None, "code": "rate_limit_exceeded"}})


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_in_process, "FIRST_WAIT_S", 0.01)


async def test_rollouts_get_every_place_that_there_is(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked_in_process, "WAITS", 0)
    engine.delay_s = 0.5
    async with served(agent(neighbours(engine, World, max_in_flight=8))) as client:
        answers = await asyncio.gather(*(client.post("/run", row()) for _ in range(8)))
    assert [answer.status for answer in answers] == [200] * 8
    assert "x-session-id" not in engine.asked[0]["headers"]


async def test_a_conversation_waits_for_a_place_instead_of_being_lost(engine: ScriptedEngine) -> None:
    engine.headers = [(b"retry-after", b"0")]
    engine.script = [calls(("say", {"word": "a"})), CROWDED, CROWDED, says("done")]
    async with served(agent(neighbours(engine, World))) as client:
        done = await rolled_out(client, row())
    assert (done["words"], done["text"], len(engine.asked)) == (["a"], "done", 4)


@pytest.mark.parametrize(("header", "asked"), [([(b"retry-after", b"0")], 3), ([(b"retry-after", b"86400")], 1), ([], 1)])
async def test_the_wait_has_an_end_and_is_for_who_says_when_to_come_back(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, header: Any, asked: int
) -> None:
    monkeypatch.setattr(asked_in_process, "WAITS", 2)
    engine.headers = header
    engine.script = [CROWDED]
    async with served(agent(neighbours(engine, World))) as client:
        answer = await client.post("/run", row())
    assert (answer.status, len(engine.asked)) == (429, asked)
