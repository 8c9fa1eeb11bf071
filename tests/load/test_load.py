"""What load does to those who have no part in it: on a real `ng_run` with HAProxy, over an engine whose capacity is known.

`scripts/load` runs the same for a minute, and with 10,000 idle connections.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import psutil
import pytest
from ng_run_process import NgRun, command_line, running, until
from offered_load import Seen, bystander, dripping, idle, offer, one_by_one, reading_nothing, vanishing

from local_vllm.cluster.machine import allow_files, free_ports, is_port_free

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

OVERLOAD_S = float(os.environ.get("LOCAL_VLLM_LOAD_S", "6"))
IDLE = int(os.environ.get("LOCAL_VLLM_LOAD_CONNECTIONS", "1000"))
# The engine: 4 at once, 100 ms each.
AT_ONCE, SERVICE_S = 4, 0.1
CAPACITY = AT_ONCE / SERVICE_S
IN_FLIGHT = 48
RECOVERS_WITHIN_S = 5.0
MEMORY_MIB = 64
# What the kernel holds of each stream was read from the engine before.
STREAMS_MIB = 320
SOAK_S = float(os.environ.get("LOCAL_VLLM_SOAK_S", "8"))

CONFIG = """\
policy_model:
  responses_api_models:
    vllm_model:
      base_url: http://127.0.0.1:{port}/v1
      model: m
      max_requests_in_flight: {in_flight}
      response_store: none
"""

_rows: list[str] = []


class Engine:
    """The engine's process, which can be killed and started again at the same address."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        script = Path(__file__).with_name("limited_engine.py")
        self._process = subprocess.Popen([sys.executable, script, str(self._port), str(AT_ONCE), str(SERVICE_S)])
        assert until(lambda: not is_port_free("127.0.0.1", self._port), 20)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NgRun]:
    allow_files()
    folder, port = tmp_path_factory.mktemp("run"), free_ports(1)[0]
    engine = Engine(port)
    (folder / "env.yaml").touch()
    (folder / "config.yaml").write_text(CONFIG.format(port=port, in_flight=IN_FLIGHT))
    try:
        engine.start()
        with running(folder, "+config_paths=[config.yaml]", deadline_s=180) as started:
            started.limited_engine = engine
            yield started
        print("\n| case | bystander alone | bystander beside it | what else |\n|---|---|---|---|", *_rows, sep="\n")
    finally:
        engine.end()


@pytest.fixture
def url(run: NgRun) -> str:
    return f"{run.url}/policy_model/v1/responses"


def replica(run: NgRun) -> psutil.Process:
    """The process of the server that is asked: the one that has most connections of its own to the engine."""
    (found,) = [each for each in run.processes() if "ServeReplica:policy_model" in command_line(each)]
    return found


def memory_mib(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20


def note(case: str, alone: Seen, beside: Seen, more: str = "") -> None:
    row = f"| {case} | {alone.ms(0.5):.0f} / {alone.ms(0.95):.0f} ms | {beside.ms(0.5):.0f} / {beside.ms(0.95):.0f} ms | {more} |"
    _rows.append(row)
    print(row)


async def test_ten_times_more_than_the_engine_can_take(run: NgRun, url: str) -> None:
    """One session floods; five others ask one by one. The queue is bounded, and gone soon after."""
    alone = await bystander(url, 3, rate=5)
    before = memory_mib(replica(run))
    over = asyncio.Event()
    modest = [asyncio.ensure_future(one_by_one(url, f"modest {number}", over)) for number in range(5)]
    flood = await offer(url, 10 * CAPACITY, OVERLOAD_S, ["flood"])
    over.set()
    ended = time.monotonic()
    others = [await each for each in modest]
    grown = memory_mib(replica(run)) - before
    await asyncio.sleep(max(0.0, RECOVERS_WITHIN_S - (time.monotonic() - ended) - 2))
    after = await bystander(url, 3, rate=5)

    answered = [each for each in flood.outcomes if each.status == 200]
    refused = [each for each in flood.outcomes if each.status == 429]
    modest_answers = Seen([outcome for seen in others for outcome in seen.outcomes])
    note(
        f"{10 * CAPACITY:.0f} requests a second for {OVERLOAD_S:.0f} s, of which the engine takes {CAPACITY:.0f}",
        alone,
        after,
        f"(after it) flood: {len(answered)} answered, {len(refused)} times 429, slowest {max(each.latency_s for each in answered):.1f} s; "
        f"five others: {modest_answers}; replica +{grown:.0f} MiB",
    )
    assert flood.statuses() <= {200, 429} and modest_answers.statuses() <= {200, 429}
    assert all(each.retry_after for each in refused) and len(refused) > len(answered)
    assert len(answered) > 0.3 * CAPACITY * OVERLOAD_S  # no collapse
    assert max(each.latency_s for each in answered) < 3 * IN_FLIGHT / CAPACITY + 2
    for seen in others:
        assert any(each.status == 200 for each in seen.outcomes)
    assert sum(each.status == 200 for each in modest_answers.outcomes) >= 0.9 * len(modest_answers.outcomes)
    assert grown < MEMORY_MIB
    assert after.statuses() == {200} and after.ms(0.5) < 2 * alone.ms(0.5) + 50


CASES: dict[str, Callable[[str], AbstractAsyncContextManager[object]]] = {
    f"{IDLE} idle connections": lambda url: idle(url, IDLE),
    "100 requests whose headers come a byte at a time": lambda url: dripping(url, 100, headers_first=False),
    "100 requests whose bodies come a byte at a time": lambda url: dripping(url, 100, headers_first=True),
    "5 streams of 64 MiB that nobody reads": lambda url: reading_nothing(url, 5),
}


@pytest.mark.parametrize("case", CASES)
async def test_nobody_else_is_slowed_down_by(run: NgRun, url: str, case: str) -> None:
    alone = await bystander(url, 2)
    before = memory_mib(replica(run))
    async with CASES[case](url):
        await asyncio.sleep(2)
        beside = await bystander(url, 3)
        grown = memory_mib(replica(run)) - before
    note(case, alone, beside, f"replica +{grown:.0f} MiB")
    assert beside.statuses() == {200}
    assert beside.ms(0.5) < 2 * alone.ms(0.5) + 50 and beside.ms(0.95) < 4 * alone.ms(0.95) + 500
    assert grown < MEMORY_MIB if "streams" not in case else grown < STREAMS_MIB


async def test_nobody_else_is_slowed_down_by_clients_that_vanish(run: NgRun, url: str) -> None:
    alone = await bystander(url, 2)
    over = asyncio.Event()
    going = asyncio.ensure_future(vanishing(url, over))
    beside = await bystander(url, 3)
    over.set()
    gone = await going
    note(f"{gone} clients that ask and vanish, in 3 s", alone, beside)
    assert gone > 10
    assert beside.statuses() == {200}
    assert beside.ms(0.5) < 2 * alone.ms(0.5) + 100


async def test_a_steady_load_with_faults_leaves_nothing_behind(run: NgRun, url: str) -> None:
    """Faults at random, a second between them; then all is as it was. `scripts/soak` goes on for ten minutes."""
    faults = [_engine_dies, _engine_stops, _clients_vanish, _flood]
    if SOAK_S > 60:
        faults.append(_replica_dies)
    dice, happened = random.Random(0), Counter[str]()
    over = asyncio.Event()
    load = [asyncio.ensure_future(one_by_one(url, f"steady {number}", over)) for number in range(8)]
    await asyncio.sleep(3)
    before, processes_before, begun = footprint(run), len(run.processes()), time.monotonic()
    while time.monotonic() < begun + SOAK_S:
        fault = dice.choice(faults)
        happened[fault.__name__.strip("_").replace("_", " ")] += 1
        await fault(run, url)
        await asyncio.sleep(1)
    over.set()
    steady = Seen([outcome for each in load for outcome in (await each).outcomes])
    await asyncio.sleep(RECOVERS_WITHIN_S)
    after = await bystander(url, 3, rate=5)
    memory, files = footprint(run)
    told = ", ".join(f"{count} x {name}" for name, count in sorted(happened.items()))
    print(
        f"soak: {SOAK_S:.0f} s; {told}; steady clients: {steady}, others {Counter(each.status for each in steady.outcomes)}; "
        f"replica {before[0]:.0f} -> {memory:.0f} MiB, {before[1]} -> {files} files; processes {processes_before} -> "
        f"{len(run.processes())}; afterwards {after}"
    )
    assert after.statuses() == {200}
    assert steady.statuses() <= {0, 200, 429, 500, 502, 503}
    assert memory - before[0] < MEMORY_MIB + STREAMS_MIB and files - before[1] < 40
    assert len(run.processes()) <= processes_before + 1


def footprint(run: NgRun) -> tuple[float, int]:
    """Memory in MiB and open files of the replica, once there is one."""
    assert until(lambda: any("ServeReplica:policy_model" in command_line(each) for each in run.processes()), 60)
    process = replica(run)
    return memory_mib(process), process.num_fds()


async def _engine_dies(run: NgRun, url: str) -> None:
    run.limited_engine.end()
    await asyncio.sleep(1)
    run.limited_engine.start()


async def _engine_stops(run: NgRun, url: str) -> None:
    run.limited_engine.signal(signal.SIGSTOP)
    await asyncio.sleep(2)
    run.limited_engine.signal(signal.SIGCONT)


async def _clients_vanish(run: NgRun, url: str) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(2, over.set)
    await vanishing(url, over)


async def _flood(run: NgRun, url: str) -> None:
    await offer(url, 5 * CAPACITY, 2, ["flood"])


async def _replica_dies(run: NgRun, url: str) -> None:
    replica(run).kill()
    await asyncio.sleep(10)
