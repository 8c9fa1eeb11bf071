"""Looks at real processes that are really killed and stopped, and what is decided from them, in real time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from enlisted_engine import METRICS

from local_vllm.cluster.machine import free_ports
from local_vllm.engine import node_watch
from local_vllm.engine.metrics import ranks_seen, requests_in_flight
from local_vllm.engine.node_watch import NodeWatch
from local_vllm.engine.observe import Address, Watch
from local_vllm.engine.supervise import GiveUp, Vigil, step
from local_vllm.processes import members
from local_vllm.processes.tree import descendants, start_time

pytestmark = pytest.mark.timeout(60)

PROGRAM = Path(__file__).parent / "enlisted_engine.py"
STALL_S = 3.0


@dataclass
class Engine:
    """Processes that have enlisted themselves, and how their HTTP side is told what to do."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def does(self, **what: bool) -> None:
        self.folder.with_suffix(".control").write_text(json.dumps(what))

    @property
    def child(self) -> int:
        return descendants(self.process.pid)[0]

    async def given_up(self, within_s: float, then: Callable[[], None] = lambda: None) -> tuple[GiveUp | None, float]:
        """Watch it; `then` comes after a second. Why it was given up, and how long after that."""
        here = NodeWatch(self.folder)
        here.settle()
        vigil, begun, done = Vigil.begin(1), time.monotonic(), None
        async with Watch(Address(f"http://127.0.0.1:{self.port}", "key", "m"), here, []) as watch:
            async for look in watch.looks():
                now = time.monotonic()
                if done is None and now - begun > 1:
                    then()
                    done = time.monotonic()
                vigil, actions = step(vigil, look, STALL_S)
                for action in actions:
                    if isinstance(action, GiveUp):
                        return action, now - (done or begun)
                    watch.ask(action)
                if now - begun > within_s + 1:
                    return None, within_s


@pytest.fixture(params=["live"])
async def engine(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    folder, port = tmp_path / "members", free_ports(1)[0]
    folder.with_suffix(".control").write_text("{}")
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(port), request.param], env=os.environ | {members.FOLDER: str(folder)}
    )
    started = Engine(folder, port, process)
    try:
        await _until_it_answers(started)
        yield started
    finally:
        members.end(folder)
        process.kill()
        process.wait()


@contextmanager
def deaf_listener() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def _until_it_answers(engine: Engine) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{engine.port}/metrics"):
                    if len(members.members(engine.folder)) == 2:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


async def test_a_killed_child_is_noticed_within_a_second(engine: Engine) -> None:
    child = engine.child
    lost, after_s = await engine.given_up(10, lambda: os.kill(child, signal.SIGKILL))
    assert f"(pid {child}) has ended" in lost.why
    assert after_s < 1


async def test_a_stopped_child_is_noticed_within_5_s(engine: Engine) -> None:
    child = engine.child
    lost, after_s = await engine.given_up(10, lambda: os.kill(child, signal.SIGSTOP))
    assert f"(pid {child}) is stopped" in lost.why
    assert after_s < 5


async def test_a_child_that_is_stopped_for_a_moment_is_left_alone(engine: Engine) -> None:
    child = engine.child

    def blink() -> None:
        os.kill(child, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(1, os.kill, child, signal.SIGCONT)

    assert await engine.given_up(4, blink) == (None, 4)


async def test_an_idle_engine_that_answers_its_canaries_lives(engine: Engine) -> None:
    assert (await engine.given_up(3 * STALL_S))[0] is None


async def test_an_idle_engine_that_does_not_answer_its_canary_has_stalled(engine: Engine) -> None:
    lost, after_s = await engine.given_up(4 * STALL_S, lambda: engine.does(answers=False))
    assert lost.stalled
    assert STALL_S <= after_s < 2.5 * STALL_S


async def test_an_engine_that_its_user_has_paused_is_left_in_peace(engine: Engine) -> None:
    engine.does(answers=False, running=True, paused=True)
    assert (await engine.given_up(3 * STALL_S))[0] is None


async def test_an_engine_that_refuses_to_generate_and_does_not_move_has_stalled(engine: Engine) -> None:
    engine.does(refuses=True, running=True)
    lost, _ = await engine.given_up(3 * STALL_S)
    assert "rank 0 has generated nothing" in lost.why


async def test_an_idle_engine_that_refuses_to_generate_lives(engine: Engine) -> None:
    engine.does(refuses=True)
    assert (await engine.given_up(3 * STALL_S))[0] is None


async def test_a_busy_engine_that_makes_progress_lives_though_no_canary_comes_back(engine: Engine) -> None:
    engine.does(answers=False, moves=True, running=True)
    # The counters are read every two seconds, and have to move between two readings.
    assert (await engine.given_up(3 * STALL_S))[0] is None


async def test_a_silent_engine_of_which_nothing_computes_has_stalled(engine: Engine) -> None:
    """Its port is there and nobody answers: the processes are well, for all that /proc tells."""
    with deaf_listener() as engine.port:
        lost, _ = await engine.given_up(4 * STALL_S)
    assert lost.stalled
    assert "API server" in lost.why


@pytest.mark.parametrize("engine", ["spin"], indirect=True)
async def test_a_silent_engine_that_computes_is_only_busy(engine: Engine) -> None:
    with deaf_listener() as engine.port:
        assert (await engine.given_up(4 * STALL_S))[0] is None


async def test_a_watcher_that_was_held_up_itself_blames_nobody(engine: Engine) -> None:
    engine.does(running=True)
    lost, _ = await engine.given_up(4, lambda: time.sleep(2 * STALL_S))
    assert lost is None


async def test_what_is_ended_is_gone_with_its_folder(engine: Engine) -> None:
    below = members.members(engine.folder)
    await asyncio.to_thread(members.end, engine.folder)
    assert all(seen.is_gone for seen in members.look(below))
    assert not engine.folder.exists()


async def test_stopped_processes_are_ended_too(engine: Engine) -> None:
    below = members.members(engine.folder)
    for member in below:
        os.kill(member.pid, signal.SIGSTOP)
    await asyncio.to_thread(members.end, engine.folder)
    assert all(seen.is_gone for seen in members.look(below))


def test_a_ray_actor_that_is_gone_while_its_engine_goes_on_starting_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_watch, "GOES_ON_S", 0.3)
    started = [subprocess.Popen([name, "600"], executable="/bin/sleep") for name in ("ray::RayWorkerProc", "helper")]
    for process in started:
        (tmp_path / f"{process.pid}-{start_time(process.pid)}").touch()
    here = NodeWatch(tmp_path)
    assert here.lost_while_starting() is None
    for process in started:
        process.kill()
        process.wait()
    assert here.lost_while_starting() is None, "vLLM may be about to end as well"
    time.sleep(0.5)
    assert str(here.lost_while_starting()) == f"ray::RayWorkerProc (pid {started[0].pid})"


def test_shared_memory_of_members_that_died_with_their_watcher_is_removed_later(tmp_path: Path) -> None:
    """The names are kept beside the members: nobody maps the segment any more when it is found."""
    folder = tmp_path / "members"
    program = (
        "import time; from multiprocessing import resource_tracker, shared_memory as m\n"
        "from local_vllm.processes.members import enlist\n"
        "kept = m.SharedMemory(create=True, size=64); resource_tracker.unregister(kept._name, 'shared_memory')\n"
        "enlist(); print(kept.name, flush=True); time.sleep(600)"
    )
    # On a command line the program would look like a helper of multiprocessing.
    (tmp_path / "member.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "member.py"],
        env=os.environ | {members.FOLDER: str(folder)},
        stdout=subprocess.PIPE,
    )
    segment = Path("/dev/shm") / process.stdout.readline().decode().strip()
    NodeWatch(folder).settle()
    process.kill()
    process.wait()
    assert segment.exists()
    members.end(folder)
    assert not segment.exists()


def test_a_helper_of_multiprocessing_may_come_and_go(tmp_path: Path) -> None:
    program = "from multiprocessing.spawn import spawn_main; import time; time.sleep(600)"
    helper = subprocess.Popen([sys.executable, "-c", program])
    other = subprocess.Popen(["sleep", "600"])
    for process in (helper, other):
        (tmp_path / f"{process.pid}-{start_time(process.pid)}").touch()
    try:
        assert {member.pid for member in members.members(tmp_path)} == {helper.pid, other.pid}
        assert [member.pid for member in NodeWatch(tmp_path).settle()] == [other.pid]
    finally:
        helper.kill()
        other.kill()


def test_a_process_that_has_the_pid_of_a_member_is_not_the_member(tmp_path: Path) -> None:
    (tmp_path / f"{os.getpid()}-1").touch()
    assert members.members(tmp_path) == ()
    assert members.look([members.Member(os.getpid(), 1, "somebody")])[0].is_gone


def test_folders_in_which_nobody_lives_are_swept_but_not_those_of_another_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "_PARENT", tmp_path)
    monkeypatch.setattr(members, "SWEPT_AFTER_S", -1.0)
    names = {"empty": "", "dead": "4194000-7", "elsewhere": "4194000-7-1"}
    for name, member in names.items():
        (folder := members.folder_of("r1", name, 0)).mkdir()
        if member:
            (folder / member).touch()
    here = members.folder_of("r1", "here", 0)
    monkeypatch.setenv(members.FOLDER, str(here))
    members.enlist()
    assert [member.pid for member in members.members(here)] == [os.getpid()]
    members.sweep()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["lv-m-r1-elsewhere-0", "lv-m-r1-here-0"]


def test_a_process_that_no_engine_started_enlists_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(members.FOLDER, raising=False)
    members.enlist()


def test_metrics_are_read_by_their_exact_names() -> None:
    text = METRICS.format(running=2.0, tokens=7.0)
    assert requests_in_flight(text) == 2
    (seen,) = ranks_seen(text).values()
    assert seen.works
    assert not seen.sleeps
    assert ranks_seen(METRICS.format(running=2.0, tokens=8.0))[0].marks != seen.marks


def test_metrics_tell_ranks_apart_and_who_sleeps() -> None:
    text = (
        'vllm:generation_tokens_total{engine="0"} 5.0\nvllm:generation_tokens_total{engine="1"} 6.0\n'
        'vllm:engine_sleep_state{engine="1",sleep_state="awake"} 0.0\n'
        'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 1.0\n'
    )
    ranks = ranks_seen(text)
    assert [ranks[rank].marks[0] for rank in (0, 1)] == [5.0, 6.0]
    assert [ranks[rank].sleeps for rank in (0, 1)] == [False, True]
