"""Which endpoint and which rank a session gets, and that it keeps them."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from itertools import islice

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers_under_test import SECRET, model_server, over
from stand_in_engine import MODEL, StandInEngine, engine, serving

from local_vllm.serving.endpoints import Endpoint, Ready
from local_vllm.serving.sessions import QUEUE_DIFFERENCE, Destination, Sessions

pytestmark = pytest.mark.timeout(30)

ASK = {"model": "m", "input": "Hi"}


def endpoints(count: int, ranks: int = 1) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(f"http://10.0.0.{n}:8000/v1", "EMPTY", MODEL, ranks) for n in range(1, count + 1))


def sessions(server: str = "policy_model", *, secret: bytes = SECRET, first: int = 0) -> Sessions:
    return Sessions(server, secret, first=first)


def cookie_of(destination: Destination) -> dict[bytes, bytes]:
    """What a client sends back of what it was given."""
    (name, value), = destination.headers
    assert name == b"set-cookie"
    return {b"cookie": b"other=1; " + value.split(b";")[0]}


def test_new_sessions_take_the_endpoints_in_turn() -> None:
    there, chooser = endpoints(3), sessions()
    taken = [chooser.choose(Ready(there), {}, None).endpoint for _ in range(4)]
    assert taken == [there[0], there[1], there[2], there[0]]


def test_a_replica_begins_to_count_where_it_is_told() -> None:
    there = endpoints(3)
    assert sessions(first=2).choose(Ready(there), {}, None).endpoint == there[2]


def test_ranks_are_taken_in_turn_behind_every_endpoint() -> None:
    there, chooser = endpoints(2, ranks=2), sessions()
    taken = [chooser.choose(Ready(there), {}, None) for _ in range(5)]
    assert [(there.index(to.endpoint), to.rank) for to in taken] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0)]


def test_one_endpoint_with_one_rank_needs_no_cookie() -> None:
    to = sessions().choose(Ready(endpoints(1)), {}, "a hint")
    assert to == Destination(endpoints(1)[0], None, ())


def test_a_cookie_brings_a_session_back_from_any_replica() -> None:
    there = endpoints(3, ranks=2)
    given_ = list(islice(iter(lambda c=sessions(): c.choose(Ready(there), {}, None), None), 6))
    for to in given_:
        back = sessions(first=4).choose(Ready(there), cookie_of(to), None)
        assert (back.endpoint, back.rank, back.headers) == (to.endpoint, to.rank, ())


def test_a_cookie_is_for_http_only_and_for_the_same_site() -> None:
    (_, value), = sessions().choose(Ready(endpoints(2)), {}, None).headers
    assert value.endswith(b"; Path=/; HttpOnly; SameSite=Lax")
    assert b"10.0.0" not in value


@pytest.mark.parametrize("forge", [
    lambda cookie: cookie[:-1] + (b"0" if cookie[-1:] != b"0" else b"1"),
    lambda cookie: cookie.replace(b".0.", b".1."),
    lambda cookie: cookie.split(b".")[0],
    lambda cookie: cookie.split(b"=")[0] + b"=\xff\xfe..",
], ids=["signature", "rank", "unsigned", "noise"])  # fmt: skip
def test_a_forged_cookie_is_a_new_session(forge) -> None:
    there, chooser = endpoints(2, ranks=2), sessions()
    name_and_value = cookie_of(chooser.choose(Ready(there), {}, None))[b"cookie"].split(b"; ")[1]
    to = chooser.choose(Ready(there), {b"cookie": forge(name_and_value)}, None)
    assert to.endpoint == there[1]
    assert to.headers


def test_a_cookie_of_another_deployment_or_server_is_a_new_session() -> None:
    there = endpoints(2)
    cookie = cookie_of(sessions(secret=b"another").choose(Ready(there), {}, None))
    assert sessions().choose(Ready(there), cookie, None).headers
    cookie = cookie_of(sessions("judge_model").choose(Ready(there), {}, None))
    assert sessions().choose(Ready(there), cookie, None).headers


def test_a_session_whose_endpoint_is_gone_gets_another_and_a_new_cookie() -> None:
    there, chooser = endpoints(3), sessions()
    cookie = cookie_of(chooser.choose(Ready(there), {}, None))
    to = chooser.choose(Ready(there[1:]), cookie, None)
    assert to.endpoint in there[1:]
    assert to.headers


@given(st.binary(min_size=1, max_size=40))
def test_a_named_session_goes_to_the_same_place_from_every_replica(name: bytes) -> None:
    there = endpoints(3, ranks=2)
    headers = {b"x-session-id": name}
    assert sessions(first=0).choose(Ready(there), headers, None) == sessions(first=5).choose(Ready(there), headers, None)


def test_named_sessions_spread_over_all_endpoints_and_ranks() -> None:
    there, chooser = endpoints(3, ranks=2), sessions()
    taken = Counter(chooser.choose(Ready(there), {b"x-session-id": b"%d" % n}, None) for n in range(1200))
    assert len(taken) == 6
    assert min(taken.values()) > 140


def test_only_the_sessions_of_an_endpoint_that_goes_move() -> None:
    there, chooser = endpoints(4), sessions()
    for n in range(300):
        before = chooser.choose(Ready(there), {}, f"session {n}").endpoint
        after = chooser.choose(Ready(there[:3]), {}, f"session {n}").endpoint
        assert after == before or before == there[3]


def test_the_header_comes_before_the_hint_and_the_hint_before_the_cookie() -> None:
    there, chooser = endpoints(8), sessions()
    by_hint = chooser.choose(Ready(there), {}, "hint").endpoint
    header = next({b"x-session-id": b"%d" % n} for n in range(100)
                  if chooser.choose(Ready(there), {b"x-session-id": b"%d" % n}, None).endpoint != by_hint)  # fmt: skip
    assert chooser.choose(Ready(there), header, "hint") == chooser.choose(Ready(there), header, None)
    cookie = next(c for c in (cookie_of(chooser.choose(Ready(there), {}, None)) for _ in range(8))
                  if chooser.choose(Ready(there), c, None).endpoint != by_hint)  # fmt: skip
    assert chooser.choose(Ready(there), cookie, "hint").endpoint == by_hint


def test_a_session_that_begins_while_only_one_endpoint_is_up_stays_there() -> None:
    there, chooser = endpoints(2), sessions()
    cookie = cookie_of(chooser.choose(Ready(there[1:], down=1), {}, None))
    assert chooser.choose(Ready(there), cookie, None) == Destination(there[1])


def test_a_much_longer_queue_gets_no_new_sessions() -> None:
    there = Ready(endpoints(3), ((0,), (QUEUE_DIFFERENCE + 1,), (QUEUE_DIFFERENCE,)))
    chooser = sessions()
    taken = [chooser.choose(there, {}, None).endpoint for _ in range(4)]
    assert taken == [there.endpoints[0], there.endpoints[2]] * 2


def test_load_does_not_decide_while_all_are_busy() -> None:
    there = Ready(endpoints(2), ((500,), (500 + QUEUE_DIFFERENCE,)))
    chooser = sessions()
    assert [chooser.choose(there, {}, None).endpoint for _ in range(2)] == list(there.endpoints)


def test_a_rank_with_a_much_longer_queue_gets_no_new_sessions() -> None:
    there, chooser = Ready(endpoints(2, ranks=2), ((100, 0), (0, 100))), sessions()
    taken = [chooser.choose(there, {}, None) for _ in range(4)]
    assert [(there.endpoints.index(to.endpoint), to.rank) for to in taken] == [(1, 0), (0, 1)] * 2


def test_an_endpoint_that_does_not_tell_its_queue_counts_as_idle() -> None:
    there = Ready(endpoints(2), ((100,), ()))
    assert sessions().choose(there, {}, None).endpoint == there.endpoints[1]


def test_a_session_stays_where_its_queue_has_become_long() -> None:
    there, chooser = endpoints(2), sessions()
    cookie, busy = cookie_of(chooser.choose(Ready(there), {}, None)), Ready(there, ((100,), (0,)))
    assert chooser.choose(busy, cookie, None) == Destination(there[0])
    named = next(n for n in map(str, range(99)) if chooser.choose(Ready(there), {}, n).endpoint == there[0])
    assert chooser.choose(busy, {}, named) == Destination(there[0])


async def three(stack: AsyncExitStack) -> list[StandInEngine]:
    return [await stack.enter_async_context(engine(f"I am {n}")) for n in (1, 2, 3)]


async def said(session: aiohttp.ClientSession, address: str, **options) -> str:
    async with session.post(f"{address}/v1/responses", json=ASK, **options) as answer:
        body = await answer.json()
        assert answer.status == 200, body
        return body["output"][-1]["content"][0]["text"]


async def test_over_http_new_sessions_go_round_and_a_client_with_cookies_stays() -> None:
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(model_server(over(*await three(stack)))))
        no_cookies = {"cookie_jar": aiohttp.DummyCookieJar()}
        stranger = await stack.enter_async_context(aiohttp.ClientSession(**no_cookies))
        regular = await stack.enter_async_context(
            aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
        )
        assert [await said(stranger, address) for _ in range(4)] == ["I am 1", "I am 2", "I am 3", "I am 1"]
        assert [await said(regular, address) for _ in range(3)] == ["I am 2"] * 3
        named = {"headers": {"x-session-id": "rollout 7"}}
        assert len({await said(stranger, address, **named) for _ in range(4)}) == 1


async def test_over_http_the_rank_travels_to_an_engine_of_several() -> None:
    async with engine() as stand_in:
        there = (Endpoint(stand_in.base_url, "EMPTY", MODEL, ranks=2),)
        source = over(stand_in)
        source._state = type(source.current())(there)
        async with serving(model_server(source)) as address, aiohttp.ClientSession(
            cookie_jar=aiohttp.CookieJar(unsafe=True)
        ) as client:
            for _ in range(2):
                await said(client, address)
            for _ in range(2):
                async with aiohttp.ClientSession() as other:
                    await said(other, address)
    ranks = [asked["headers"]["x-data-parallel-rank"] for asked in stand_in.asked]
    assert ranks == ["0", "0", "1", "0"]
