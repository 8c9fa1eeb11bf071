"""The watch over an agent that may be down, without a collection around it."""

from __future__ import annotations

import asyncio

import pytest

from local_vllm.rollouts.failures import Failed, Failure
from local_vllm.rollouts.outage import Outage, Verdict

DOWN = Failed(Failure.UNAVAILABLE, "it restarts", 503)


@pytest.mark.timeout(20)
async def test_who_comes_in_the_very_moment_in_which_a_watch_ends_goes_on() -> None:
    health, answer = asyncio.Event(), asyncio.Event()

    async def absence(agent: str) -> Failed | None:
        await health.wait()
        return None

    outage = Outage(absence, asyncio.Event(), lambda sentence: None)

    async def roll_out() -> None:
        await answer.wait()
        await outage.over()

    looking = asyncio.create_task(outage.looked_into("a"))
    rolling = asyncio.create_task(roll_out())
    await asyncio.sleep(0.01)
    health.set()
    answer.set()

    assert await looking is Verdict.WAS_UP
    await rolling


async def test_each_agent_is_looked_at_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local_vllm.rollouts.outage.LOOK_FIRST_S", 0.01)
    down, said = {"a"}, []

    async def absence(agent: str) -> Failed | None:
        await asyncio.sleep(0.01)
        return DOWN if agent in down else None

    outage = Outage(absence, asyncio.Event(), said.append)
    first = asyncio.create_task(outage.looked_into("a"))
    await asyncio.sleep(0.05)
    others = [asyncio.create_task(outage.looked_into(agent)) for agent in ("b", "b", "a")]
    down.clear()

    assert await first is Verdict.IS_BACK
    assert await asyncio.gather(*others) == [Verdict.WAS_UP, Verdict.WAS_UP, Verdict.IS_BACK]
    assert [sentence.split(":")[0] for sentence in said] == ["Paused", "Going on"]
