"""What a request refers to is fetched together, each response once, and not beyond one that is gone."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from local_vllm.protocol.stored import Stored
from local_vllm.protocol.supplied import Wanted
from local_vllm.serving.audio import AudioFolder
from local_vllm.serving.lookups import TOGETHER, Lookups

pytestmark = pytest.mark.timeout(20)


class SlowStore:
    """Has the responses 0 to `count`, of three input items each, and takes a while to look for one."""

    def __init__(self, count: int) -> None:
        self.asked: Counter[str] = Counter()
        self._here = {key(number): number for number in range(count)}

    async def get(self, response_id: str) -> Stored | None:
        self.asked[response_id] += 1
        await asyncio.sleep(0.1)
        given = b'{"input": [%b]}' % b", ".join([b'{"role": "user", "content": "x"}'] * 3)
        return Stored(response_id, None, given, b"{}") if response_id.removeprefix("resp_") in self._here else None


def key(number: int) -> str:
    return f"{number:032x}"


def item(number: int, position: int) -> str:
    return f"msg_{key(number)}i{position}"


async def found(store: SlowStore, *ids: str) -> set[str]:
    lookups = Lookups(store, AudioFolder())  # type: ignore[arg-type]
    return set((await lookups.supply(Wanted(item_ids=ids))).items)


async def test_each_response_is_fetched_once_and_several_at_a_time() -> None:
    store = SlowStore(2 * TOGETHER)
    ids = [item(number, position) for position in range(3) for number in range(2 * TOGETHER)]
    async with asyncio.timeout(1):
        assert await found(store, *ids) == set(ids)
    assert set(store.asked.values()) == {1} and len(store.asked) == 2 * TOGETHER


async def test_nothing_more_is_fetched_after_one_that_is_gone() -> None:
    store = SlowStore(2)
    ids = [item(0, 0), "msg_of_somebody_else", item(1, 1), item(1, 7)]
    ids += [item(number, 0) for number in range(2, 10_000)]
    async with asyncio.timeout(1):
        assert await found(store, *ids) == {item(0, 0), item(1, 1)}
    assert len(store.asked) == TOGETHER


async def test_an_item_that_its_response_does_not_have_is_left_out() -> None:
    assert await found(SlowStore(1), item(0, 0), item(0, 3)) == {item(0, 0)}
