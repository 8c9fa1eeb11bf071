"""A response store keeps what was used last, up to its bound, and never makes anybody wait for a write."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from local_vllm.errors import ConfigError
from local_vllm.protocol.stored import Stored
from local_vllm.serving.memory_store import ENTRY_BYTES, MemoryStore
from local_vllm.serving.response_store import LocalStores, NoStore, ResponseStore, StoreSetting
from local_vllm.serving.sqlite_store import SqliteStore

pytestmark = pytest.mark.timeout(30)

MakeStore = Callable[[int], ResponseStore]


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    if request.param == "memory":
        return MemoryStore
    return lambda max_bytes: SqliteStore(str(tmp_path / "below" / "responses.db"), max_bytes)


def stored(number: int, *, previous: int | None = None, size: int = 100) -> Stored:
    answer = b'{"id": "resp_%d"}' % number
    before = None if previous is None else f"resp_{previous}"
    return Stored(f"resp_{number}", before, b"x" * (size - len(answer)), answer)


def room_for(responses: int) -> int:
    return responses * (100 + ENTRY_BYTES)


async def kept(store: ResponseStore, numbers: range) -> list[int]:
    """Which are there; asking uses them, in this order."""
    return [number for number in numbers if await store.get(f"resp_{number}") is not None]


async def test_what_was_put_is_got(make_store: MakeStore) -> None:
    store = make_store(room_for(2))
    store.put(stored(1))
    assert await store.get("resp_1") == stored(1)
    assert await store.get("resp_2") is None
    await store.close()


async def test_a_chain_is_the_responses_that_one_continues_the_oldest_first(make_store: MakeStore) -> None:
    store = make_store(room_for(10))
    for response in (stored(1), stored(2, previous=1), stored(3, previous=2), stored(4, previous=1)):
        store.put(response)
    assert [each.id for each in await store.chain("resp_3")] == ["resp_1", "resp_2", "resp_3"]
    assert [each.id for each in await store.chain("resp_4")] == ["resp_1", "resp_4"]
    assert await store.chain("resp_5") == []
    await store.close()


async def test_a_chain_that_lost_its_beginning_shows_it(make_store: MakeStore) -> None:
    store = make_store(room_for(10))
    store.put(stored(2, previous=1))
    store.put(stored(3, previous=2))
    assert [(each.id, each.previous) for each in await store.chain("resp_3")][0] == ("resp_2", "resp_1")
    await store.close()


async def test_a_circle_ends(make_store: MakeStore) -> None:
    store = make_store(room_for(10))
    store.put(stored(1, previous=2))
    store.put(stored(2, previous=1))
    assert len(await store.chain("resp_1")) == 2
    await store.close()


async def test_the_oldest_goes_when_there_is_no_room(make_store: MakeStore) -> None:
    store = make_store(room_for(3))
    for number in range(5):
        store.put(stored(number))
    assert await kept(store, range(5)) == [2, 3, 4]
    await store.close()


async def test_what_was_used_stays_and_so_does_what_it_continues(make_store: MakeStore) -> None:
    store = make_store(room_for(3))
    for response in (stored(0), stored(1, previous=0), stored(2)):
        store.put(response)
    await store.chain("resp_1")
    store.put(stored(3))
    assert await kept(store, range(4)) == [0, 1, 3]
    await store.close()


async def test_one_response_larger_than_the_store_is_not_kept_and_takes_nothing_away(
    make_store: MakeStore,
) -> None:
    store = make_store(room_for(2))
    store.put(stored(1))
    store.put(stored(2, size=room_for(3)))
    assert await kept(store, range(3)) == [1]
    await store.close()


async def test_a_deleted_response_is_gone_and_makes_room(make_store: MakeStore) -> None:
    store = make_store(room_for(2))
    store.put(stored(1))
    store.put(stored(2))
    assert await store.delete("resp_1") is True
    assert await store.delete("resp_1") is False
    store.put(stored(3))
    assert await kept(store, range(4)) == [2, 3]
    await store.close()


async def test_none_keeps_nothing() -> None:
    store = LocalStores().store(StoreSetting("none"))
    store.put(stored(1))
    assert isinstance(store, NoStore)
    assert (await store.get("resp_1"), await store.chain("resp_1")) == (None, [])


def test_servers_of_one_process_with_one_setting_share_a_store() -> None:
    stores = LocalStores()
    assert stores.store(StoreSetting()) is stores.store(StoreSetting())
    assert stores.store(StoreSetting()) is not stores.store(StoreSetting(max_bytes=1))


# ---- the file


async def test_a_file_survives_its_process(tmp_path: Path) -> None:
    path = str(tmp_path / "responses.db")
    first = SqliteStore(path, room_for(3))
    for number in range(3):
        first.put(stored(number))
    await first.close()
    second = SqliteStore(path, room_for(3))
    second.put(stored(3))
    assert await kept(second, range(4)) == [1, 2, 3]
    await second.close()


async def test_two_processes_may_have_one_file_open(tmp_path: Path) -> None:
    one, other = (SqliteStore(str(tmp_path / "responses.db"), room_for(10)) for _ in "ab")
    one.put(stored(1))
    assert await one.get("resp_1") == stored(1)
    assert await other.get("resp_1") == stored(1)
    await one.close()
    await other.close()


async def test_a_write_does_not_wait_for_a_locked_file(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    store = SqliteStore(str(path), room_for(10))
    locking = sqlite3.connect(path)
    locking.execute("BEGIN EXCLUSIVE")
    begun = time.perf_counter()
    for number in range(5):
        store.put(stored(number))
    assert time.perf_counter() - begun < 0.05
    locking.rollback()
    assert await kept(store, range(5)) == [0, 1, 2, 3, 4]
    await store.close()


@pytest.mark.parametrize("place", ["a folder", "no database"])
def test_a_file_that_cannot_be_used_is_an_error_of_the_configuration(tmp_path: Path, place: str) -> None:
    path = tmp_path / "here"
    if place == "a folder":
        path.mkdir()
    else:
        path.write_bytes(b"this is no database, and long enough to show it" * 100)
    with pytest.raises(ConfigError, match="SQLite"):
        SqliteStore(str(path), 1000)


async def test_closing_twice_is_closing_once(make_store: MakeStore) -> None:
    store = make_store(1000)
    await store.close()
    await store.close()


@pytest.mark.parametrize("umask", [0o022, 0o077])
async def test_only_their_owner_reads_the_responses_of_a_file(tmp_path: Path, umask: int) -> None:
    path, before = tmp_path / "responses.db", os.umask(umask)
    try:
        store = SqliteStore(str(path), room_for(10))
        store.put(stored(1))
        assert await store.get("resp_1") is not None
        files = list(tmp_path.iterdir())
    finally:
        os.umask(before)
    assert len(files) > 1 and {file.stat().st_mode & 0o777 for file in files} == {0o600}
    await store.close()


async def test_the_mode_of_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (path := tmp_path / "responses.db").touch(mode=0o640)
    await SqliteStore(str(path), room_for(10)).close()
    assert path.stat().st_mode & 0o777 == 0o640
