"""What a run does while its private Ray comes up; Ray is stood in for."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace

import pytest

from local_vllm.errors import ClusterError
from local_vllm.runs import clusters
from local_vllm.runs.clusters import run_cluster

pytestmark = pytest.mark.timeout(20)

VARIABLE = "LOCAL_VLLM_TESTS_RAY"
RECORD = SimpleNamespace(volatile="/tmp", logs="/tmp")


class PrivateRay:
    """It is up when it is let."""

    def __init__(self) -> None:
        self.environment = {VARIABLE: "told"}
        self.guard = None
        self.up = threading.Event()
        self.connected: list[str] = []
        self.ended = False

    def address(self) -> str:
        if not self.up.wait(5):
            raise ClusterError("Ray was not up")
        return "127.0.0.1:1"


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> PrivateRay:
    stand_in = PrivateRay()

    @contextmanager
    def started(*_: object, **__: object) -> Iterator[PrivateRay]:
        yield stand_in
        stand_in.ended = True

    @asynccontextmanager
    async def connected(address: str) -> AsyncIterator[None]:
        stand_in.connected.append(address)
        yield

    # What is set by the run goes with the test.
    monkeypatch.setenv(VARIABLE, "untold")
    for name in ("logical_gpus", "logical_cpus", "joined_address"):
        monkeypatch.setattr(clusters, name, lambda config: None)
    monkeypatch.setattr(clusters, "private_cluster", started)
    monkeypatch.setattr(clusters, "connected", connected)
    return stand_in


async def bring_up(meanwhile: Callable[[], None]) -> None:
    async with run_cluster(None, RECORD, meanwhile):  # type: ignore[arg-type]
        pass


async def test_what_is_done_meanwhile_is_done_before_ray_is_up_and_sees_its_variables(private: PrivateRay) -> None:
    seen: list[str] = []

    def meanwhile() -> None:
        seen.append(os.environ[VARIABLE])
        assert not private.connected
        private.up.set()

    await bring_up(meanwhile)
    assert seen == ["told"]
    assert private.connected == ["127.0.0.1:1"]
    assert private.ended


async def test_a_run_that_is_stopped_meanwhile_waits_for_what_is_being_done(private: PrivateRay) -> None:
    begun, done = threading.Event(), threading.Event()

    def meanwhile() -> None:
        begun.set()
        private.up.wait(5)
        done.set()

    task = asyncio.create_task(bring_up(meanwhile))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    await asyncio.sleep(0.1)
    private.up.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()
    assert private.connected == []
