"""A server that is asked for more than it takes: who gets a place, and what the others are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers_under_test import model_server, over
from stand_in_engine import StandInEngine, engine, serving

from local_vllm.serving.admission import Admission
from local_vllm.serving.replies import Refused
from local_vllm.serving.requests import Limits, Request

ASK = {"model": "m", "input": "Hello!"}


def request(session: str = "", key: str = "") -> Request:
    headers = [(b"x-session-id", session.encode())] if session else []
    headers += [(b"authorization", key.encode())] if key else []

    async def receive() -> Any: ...

    return Request({"type": "http", "headers": headers}, receive, Limits())


def enter(admission: Admission, session: str = "", hint: str | None = None, key: str = "") -> Request | None:
    """The request that got a place, or None."""
    asking = request(session, key)
    try:
        admission.enter(asking)
        admission.count(asking, hint)
    except Refused as refused:
        assert refused.reply.status == 429
        asking.close()
        return None
    return asking


def test_one_session_alone_gets_half_of_the_places_and_others_find_room() -> None:
    admission = Admission("policy_model", 100)
    greedy = [asking for _ in range(1000) if (asking := enter(admission, "greedy"))]
    assert len(greedy) == 50
    assert all(enter(admission, f"modest {number}") for number in range(50))
    assert enter(admission, "one more") is None


def test_requests_of_one_hint_of_one_header_or_of_one_key_are_of_one_session() -> None:
    for more in ({"session": "s"}, {"hint": "s"}, {"key": "Bearer k"}, {}):
        admission = Admission("policy_model", 10)
        assert sum(enter(admission, **more) is not None for _ in range(20)) == 5


def test_who_was_refused_finds_a_place_when_others_have_ended() -> None:
    admission = Admission("policy_model", 4)
    held = [enter(admission, "a"), enter(admission, "a")]
    assert enter(admission, "a") is None
    held[0].close()
    assert enter(admission, "a") is not None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=200), st.integers(1, 20))
def test_places_are_never_more_than_the_limit_and_all_come_back(events: list[tuple[int, bool]], limit: int) -> None:
    admission, held = Admission("policy_model", limit), []
    for session, enters in events:
        if enters and (asking := enter(admission, str(session))):
            held.append(asking)
        elif not enters and held:
            held.pop(session % len(held)).close()
        assert admission.in_flight == len(held) <= limit
    for asking in held:
        asking.close()
        asking.close()
    assert admission.in_flight == 0 and not admission._by_session


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(1, 8))
def test_a_session_that_holds_nothing_gets_a_place_while_there_is_one(limit: int, floods: int) -> None:
    admission = Admission("policy_model", limit)
    for _ in range(limit * 2):
        for flood in range(floods):
            enter(admission, f"flood {flood}")
    if admission.in_flight < limit:
        assert enter(admission, "newcomer") is not None


@pytest.fixture
async def slow_engine() -> AsyncIterator[StandInEngine]:
    async with engine() as stand_in:
        stand_in.delay_s = 0.5
        yield stand_in


async def test_beyond_the_bound_there_is_a_429_with_a_time_and_places_come_back(slow_engine: StandInEngine) -> None:
    server = model_server(over(slow_engine), max_in_flight=8)
    async with serving(server) as address, aiohttp.ClientSession() as session:

        async def ask(name: str) -> tuple[int, Any, str | None]:
            headers = {"x-session-id": name}
            async with session.post(f"{address}/v1/responses", json=ASK, headers=headers) as answer:
                return answer.status, await answer.json(), answer.headers.get("retry-after")

        answers = await asyncio.gather(*(ask("greedy") for _ in range(40)), *(ask(f"s{n}") for n in range(3)))
        assert [status for status, _, _ in answers[40:]] == [200] * 3
        refused = [(body["error"], when) for status, body, when in answers if status == 429]
        assert len(refused) == 36 and all(1 <= int(when or 0) <= 3 for _, when in refused)
        assert {error["code"] for error, _ in refused} == {"rate_limit_exceeded"}
        assert "max_requests_in_flight" in refused[0][0]["message"]
        assert server.admission.in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_vanishes_gives_its_place_back(slow_engine: StandInEngine, stream: bool) -> None:
    slow_engine.delay_s = 20.0
    server = model_server(over(slow_engine))
    async with serving(server) as address, aiohttp.ClientSession() as session:
        asking = [
            asyncio.ensure_future(session.post(f"{address}/v1/responses", json=ASK | {"stream": stream}))
            for _ in range(10)
        ]
        async with asyncio.timeout(5):
            while server.admission.in_flight < 10:
                await asyncio.sleep(0.01)
        for each in asking:
            each.cancel()
        async with asyncio.timeout(2):
            while server.admission.in_flight:
                await asyncio.sleep(0.01)
