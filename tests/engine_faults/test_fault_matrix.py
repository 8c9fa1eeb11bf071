"""Every process of a real engine killed or stopped, idle and at work: noticed, answered, and generating again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_answers import check_text
from engine_faults import (
    BACK_WITHIN_S,
    FAULTY,
    HEADING,
    LOADS,
    LONG,
    STALL_TIMEOUT_S,
    STEADY,
    Cell,
    Clients,
    Footprint,
    Steady,
    cells_asked_for,
    clients,
    footprints,
    hanging,
    hurt,
    left_of_earlier_launches,
    two_engines,
    until_noticed,
)
from ng_run_process import GONE_WITHIN_S, NgRun, until
from openai import OpenAIError

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

NOTICED_WITHIN_S = 5.0
ANSWERED_WITHIN_S = 1.0
# On two cores that engines want too.
REPLICA_WITHIN_S = 30.0
SERVE_WITHIN_S = 60.0
# Connections come and go, and so do buffers.
FILES_MORE, MEMORY_MORE_MIB = 48, 96.0
# A look a second, and what the engine's own answers take on a busy machine.
CANARY_AND_LOOKS_S = 25.0
LOST = "503 engine_lost and Retry-After"
# A stream that had not begun yet is answered like any other request.
ENDINGS = {"idle": set(), "32 in flight": {LOST}, "streaming": {LOST, "response.failed"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NgRun]:
    with two_engines(tmp_path_factory.mktemp("faults")) as started:
        yield started


@pytest.fixture(scope="module")
def table() -> Iterator[list[Cell]]:
    """What was measured, printed at the end."""
    cells: list[Cell] = []
    yield cells
    print("\n" + "\n".join([HEADING, *(cell.row() for cell in cells)]))


@pytest.fixture(scope="module")
def before_the_faults(run: NgRun) -> dict[int, Footprint]:
    return footprints(run)


@pytest.mark.usefixtures("before_the_faults")
@pytest.mark.parametrize(("fault", "load"), cells_asked_for())
def test_a_fault_is_noticed_within_5_s_answered_within_1_s_and_mended(
    run: NgRun, table: list[Cell], fault: str, load: str
) -> None:
    cell, steady = asyncio.run(_hurt_beside_a_steady_client(run, fault, load))
    table.append(cell)
    print(cell.row(), f"steady: {steady.answers} answers, longest {steady.longest_s:.1f} s")
    assert cell.noticed_s < NOTICED_WITHIN_S
    assert cell.answered_s is None or cell.answered_s < ANSWERED_WITHIN_S
    assert set(cell.endings) <= ENDINGS[load]
    assert load != "streaming" or cell.endings["response.failed"]
    assert steady.answers and not steady.failures, "sessions on the other engine do not notice"
    assert left_of_earlier_launches(run) == []


async def _hurt_beside_a_steady_client(run: NgRun, fault: str, load: str) -> tuple[Cell, Steady]:
    seen = Steady()
    async with clients(run) as asking:
        staying = asyncio.create_task(asking.stay_with(STEADY, seen))
        cell = await hurt(asking, fault, load)
        staying.cancel()
    return cell, seen


def test_an_engine_under_full_load_and_long_prompts_is_not_taken_for_dead(run: NgRun) -> None:
    """Its workers may have every CPU, so that its API server is starved; and it has 30 s to make progress."""
    run.let_engines_compete()
    before = run.record()["servers"][0]
    endings = asyncio.run(_full_load(run, seconds=45.0))
    after = run.record()["servers"][0]
    assert (after["state"], after["restarts"]) == ("healthy", before["restarts"])
    assert set(endings) == {"completed"}, endings


async def _full_load(run: NgRun, seconds: float) -> Counter[str]:
    """More requests at a time than the engine takes, half of them long prompts, for so long."""
    prompts = [{"input": "REPEAT:300"}, {"input": "ECHO:" + "a long prompt " * 200, "max_output_tokens": 4}]
    endings: Counter[str] = Counter()

    async def ask(asking: Clients, number: int) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            body = {"model": "any", "stream": number % 4 == 0, **prompts[number % 2]}
            endings[(await asking.ask(FAULTY, body)).code] += 1

    async with clients(run) as asking:
        await asyncio.gather(*(ask(asking, number) for number in range(48)))
    return endings


async def _stream_while(run: NgRun, server: str, act: Callable[[], None]) -> tuple[str, float]:
    """How a long stream ended during which something happened, and how long after that."""
    async with clients(run) as asking:
        streaming = asyncio.create_task(asking.ask(server, LONG | {"stream": True}))
        await asyncio.sleep(3)
        acted = time.monotonic()
        act()
        ending = await streaming
    return ending.code, ending.at - acted


def test_a_stream_outlives_the_loss_of_another_servers_replica(run: NgRun) -> None:
    """HAProxy rereads its configuration then; what is in flight stays with its old process for as long as it takes."""
    run.let_others_go_before_engines()
    engines = {process.pid for process in run.named("RayWorkerProc")}
    (replica,) = run.named(f"ray::ServeReplica:{FAULTY}")
    code, after_s = asyncio.run(_stream_while(run, STEADY, replica.kill))
    run.let_engines_compete()
    assert code == "completed"
    assert after_s > 6, "shorter than what would show it"
    assert until(lambda: _answers(run, FAULTY), REPLICA_WITHIN_S)
    assert {process.pid for process in run.named("RayWorkerProc")} == engines, "its engine goes on"


@pytest.mark.parametrize("which", ["ray::ServeController", "bin/haproxy", "ray::HAProxyManager"])
def test_requests_are_answered_again_after_a_part_of_serve_was_killed_and_engines_do_not_notice(
    run: NgRun, which: str
) -> None:
    engines = {process.pid for process in run.named("RayWorkerProc")}
    killed = {process.pid for process in run.named(which)}
    assert killed
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    assert until(lambda: {process.pid for process in run.named(which)} - killed, SERVE_WITHIN_S), "it is started again"
    assert until(lambda: _answers(run, STEADY), SERVE_WITHIN_S)
    print(f"{which} killed: answered again after {time.monotonic() - begun:.1f} s")
    assert {process.pid for process in run.named("RayWorkerProc")} == engines


def _answers(run: NgRun, server: str) -> bool:
    try:
        check_text(run.client(server))
    except OpenAIError:
        return False
    return True


async def _stall(run: NgRun) -> tuple[float, str, list[str], float]:
    """After how long a hanging engine was noticed, as what, how its requests ended, and after how long."""
    async with clients(run) as asking:
        with hanging(run):
            begun = time.monotonic()
            bodies = [{"model": "any", "input": f"ECHO:request {number}"} for number in range(4)]
            waiting = [asyncio.create_task(asking.ask(STEADY, body)) for body in bodies]
            state = await until_noticed(asking, begun, STEADY)
            noticed = time.monotonic() - begun
        endings = await asyncio.wait_for(asyncio.gather(*waiting), BACK_WITHIN_S)
        return noticed, state, [ending.code for ending in endings], time.monotonic() - begun


def test_an_engine_that_hangs_is_started_again_and_what_it_lost_is_asked_again_where_that_is_wanted(
    run: NgRun,
) -> None:
    noticed_s, state, codes, took_s = asyncio.run(_stall(run))
    print(f"a hanging engine: noticed after {noticed_s:.1f} s, its requests answered after {took_s:.0f} s")
    assert STALL_TIMEOUT_S <= noticed_s < STALL_TIMEOUT_S + CANARY_AND_LOOKS_S
    assert "has generated nothing for" in state
    assert codes == ["completed"] * len(codes)
    assert left_of_earlier_launches(run, STEADY) == []


def test_what_outlived_the_faults_has_grown_by_nothing(run: NgRun, before_the_faults: dict[int, Footprint]) -> None:
    """The run itself, Serve's controller, Ray, and every replica that was not killed."""
    after = footprints(run)
    lived = before_the_faults.keys() & after.keys()
    assert run.process.pid in lived
    for pid in lived:
        was, has = before_the_faults[pid], after[pid]
        print(f"{has.name}: {was.files} -> {has.files} files, {was.memory_mib:.0f} -> {has.memory_mib:.0f} MiB")
        assert has.files <= was.files + FILES_MORE, has.name
        assert has.memory_mib <= was.memory_mib + MEMORY_MORE_MIB, has.name


def test_no_gpu_and_no_placement_group_is_lost_over_the_restarts(run: NgRun) -> None:
    assert until(lambda: run.free_gpus_and_groups() == (0, 2), GONE_WITHIN_S), run.free_gpus_and_groups()


def test_the_record_tells_how_often_the_engine_was_started_again(run: NgRun) -> None:
    told = {server["name"]: (server["state"], server["restarts"]) for server in run.record()["servers"]}
    assert told == {FAULTY: ("healthy", len(cells_asked_for())), STEADY: ("healthy", 1)}


def test_a_run_whose_engines_were_restarted_leaves_nothing(run: NgRun) -> None:
    run_id = run.record()["run_id"]
    assert run.stop() == 0
    assert until(lambda: run.leftovers() == [], GONE_WITHIN_S), run.leftovers()
    assert list(Path("/tmp").glob(f"lv-m-{run_id}-*")) == []


def test_the_loads_are_those_of_the_table() -> None:
    assert {load for _, load in cells_asked_for()} <= set(ENDINGS) == set(LOADS)
