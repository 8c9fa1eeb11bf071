"""Faults of a real engine: one process of it is killed or stopped under a load, and a clock runs until it is back.

Two engines run side by side: `faulty` is hurt over and over, `steady` is asked all the while and must not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
from engine_answers import SERVER
from ng_run_process import KEY, WITH_HELD_BACK, NgRun, command_line, running

from local_vllm.processes import members

FAULTY, STEADY = "faulty", "steady"
REQUESTS = 32
STALL_TIMEOUT_S = 20
# As in held_back, which cannot be imported without vLLM.
HANGS_WHILE = "LOCAL_VLLM_TESTS_HANG_WHILE"
# What a request makes of the default model: more than it can say before the fault.
LONG = {"model": "any", "input": "REPEAT:3500", "max_output_tokens": 6000}
SETTLES_S = 2.0
BEGINS_WITHIN_S = 60.0
BACK_WITHIN_S = 400.0
LOADS = ("idle", f"{REQUESTS} in flight", "streaming")


@dataclass(frozen=True)
class Fault:
    """`kind` is a part of a command line, or `host` or `guard`."""

    kind: str
    signal: signal.Signals


FAULTS: Mapping[str, Fault] = {
    "worker killed": Fault("RayWorkerProc", signal.SIGKILL),
    "worker stopped": Fault("RayWorkerProc", signal.SIGSTOP),
    "engine core killed": Fault("EngineCoreActor", signal.SIGKILL),
    "API server killed": Fault("vllm.entrypoints", signal.SIGKILL),
    "API server stopped": Fault("vllm.entrypoints", signal.SIGSTOP),
    "engine's Ray actor killed": Fault("host", signal.SIGKILL),
    "engine's Ray actor stopped": Fault("host", signal.SIGSTOP),
    "guard killed": Fault("guard", signal.SIGKILL),
}


@dataclass(frozen=True)
class Ending:
    """How one request ended: at which time, and with which code ("completed" where nothing went wrong)."""

    at: float
    code: str
    retry_after: str | None = None


@dataclass(frozen=True)
class Cell:
    """One fault under one load. `noticed_s` and `recovered_s` count from the fault, `answered_s` from its notice."""

    fault: str
    load: str
    noticed_s: float
    answered_s: float | None
    recovered_s: float
    endings: Counter[str]
    state: str

    def row(self) -> str:
        answered = "" if self.answered_s is None else f"{max(0.0, self.answered_s):.2f} s"
        told = ", ".join(f"{count} x {code}" for code, count in self.endings.items())
        noticed, recovered = f"{self.noticed_s:.2f} s", f"{self.recovered_s:.0f} s"
        return f"| {self.fault} | {self.load} | {noticed} | {answered} | {recovered} | {told} |"


HEADING = (
    "| fault | load | noticed | answered after that | generates again | requests ended with |\n"
    "|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Footprint:
    """What a process holds. `files` are open ones, connections among them."""

    name: str
    files: int
    memory_mib: float


def footprints(run: NgRun) -> dict[int, Footprint]:
    """By pid, of everything of a run that is not of an engine."""
    found = {}
    for process in [psutil.Process(run.process.pid), *run.processes()]:
        line = command_line(process)
        if not re.search(r"vllm\.entrypoints|EngineCore|RayWorkerProc|multiprocessing", line):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[process.pid] = Footprint(line[:60], process.num_fds(), process.memory_info().rss / 2**20)
    return found


@dataclass
class Steady:
    """What the other engine's clients saw."""

    answers: int = 0
    failures: list[str] = field(default_factory=list)
    longest_s: float = 0.0


@contextmanager
def two_engines(folder: Path, *words: str) -> Iterator[NgRun]:
    """`steady` can be made to hang (`hanging`), and asks what it then loses again."""
    for name in (FAULTY, STEADY):
        (folder / f"{name}.yaml").write_text(SERVER.format(name=name, key=KEY, size=1))
    faulty, steady = (f"++{name}.responses_api_models.local_vllm_model" for name in (FAULTY, STEADY))
    settings = [
        f"{faulty}.max_restarts=100",
        f"{faulty}.wait_for_engine_s=2",
        f"{steady}.stall_timeout_s={STALL_TIMEOUT_S}",
        f"{steady}.retry_lost_requests=true",
        f"{steady}.vllm_serve_kwargs.logits_processors=[held_back:Hang]",
        f"{steady}.vllm_serve_env_vars.{HANGS_WHILE}={_hang_file(folder)}",
    ]
    words = (f"+config_paths=[{FAULTY}.yaml,{STEADY}.yaml]", *settings, *words)
    with running(folder, *words, environment=WITH_HELD_BACK) as run:
        yield run


@contextmanager
def hanging(run: NgRun) -> Iterator[None]:
    """No step of the engine of `steady` ends meanwhile."""
    file = _hang_file(run.state.parent)
    file.touch()
    try:
        yield
    finally:
        file.unlink()


def _hang_file(folder: Path) -> Path:
    return folder / "hang"


def process_of(run: NgRun, fault: Fault, server: str = FAULTY) -> psutil.Process:
    """The process to hurt, of that server's engine as it runs now."""
    if fault.kind in ("host", "guard"):
        guard = _guard(run, server)
        return guard if fault.kind == "guard" else guard.parent()
    run_id = run.record()["run_id"]
    for folder in Path("/tmp").glob(f"lv-m-{run_id}-{server}-*"):
        for member in members.members(folder):
            process = psutil.Process(member.pid)
            if fault.kind in command_line(process):
                return process
    raise AssertionError(f"{server} has no {fault.kind}")


def _guard(run: NgRun, server: str) -> psutil.Process:
    for process in run.named("local_vllm.processes.guard"):
        links = [link for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.is_symlink()]
        if any(f"/{server}.log" in str(link.readlink()) for link in links):
            return process
    raise AssertionError(f"no guard of {server}")


class Clients:
    """HTTP clients of both servers."""

    def __init__(self, run: NgRun, session: aiohttp.ClientSession) -> None:
        self.run = run
        self.begun = 0
        """How many answers of `faulty` have begun: a stream does with its engine's first token."""
        self._session = session

    async def health(self, server: str = FAULTY) -> tuple[int, str]:
        soon = aiohttp.ClientTimeout(total=5)
        async with self._session.get(f"{self.run.url}/{server}/health", timeout=soon) as answer:
            body = await answer.json()
            return answer.status, body.get("status") or body["error"]["message"]

    async def ask(self, server: str, body: Mapping[str, object]) -> Ending:
        async with self._session.post(f"{self.run.url}/{server}/v1/responses", json=body) as answer:
            self.begun += server == FAULTY
            text = await answer.text()
            return Ending(time.monotonic(), _code(answer.status, text), answer.headers.get("retry-after"))

    async def stay_with(self, server: str, seen: Steady) -> None:
        """Ask a small question, over and over."""
        while True:
            begun = time.monotonic()
            ending = await self.ask(server, {"model": "any", "input": "ECHO:still here"})
            seen.answers += 1
            seen.longest_s = max(seen.longest_s, ending.at - begun)
            if ending.code != "completed":
                seen.failures.append(ending.code)
            await asyncio.sleep(3)


def _code(status: int, text: str) -> str:
    if text.startswith("event:") or text.startswith("data:"):
        last = json.loads(text.rstrip().rpartition("data: ")[2])
        return last["type"] if last["type"] != "response.completed" else "completed"
    if status == 200:
        return "completed"
    return f"{status} {json.loads(text)['error']['code']}"


@asynccontextmanager
async def clients(run: NgRun) -> AsyncIterator[Clients]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
        yield Clients(run, session)


async def hurt(clients: Clients, name: str, load: str) -> Cell:
    """Bring the fault about under the load, and wait until the engine generates again."""
    run, fault = clients.run, FAULTS[name]
    run.let_others_go_before_engines()
    body = LONG | {"stream": load == "streaming"}
    requests = 0 if load == "idle" else REQUESTS
    asking = [asyncio.create_task(clients.ask(FAULTY, body)) for _ in range(requests)]
    if load == "streaming":
        await _until_one_has_begun(clients)
    await asyncio.sleep(SETTLES_S)
    assert not any(task.done() for task in asking), [task.result() for task in asking if task.done()]
    process = process_of(run, fault)
    begun = time.monotonic()
    process.send_signal(fault.signal)
    state = await until_noticed(clients, begun)
    noticed = time.monotonic()
    endings = await asyncio.wait_for(asyncio.gather(*asking), 60)
    # The start of an engine takes every CPU for a minute, and the other one has to go on.
    run.let_engines_compete()
    await _until_back(clients, begun)
    return Cell(
        fault=name,
        load=load,
        noticed_s=noticed - begun,
        answered_s=max(ending.at for ending in endings) - noticed if endings else None,
        recovered_s=time.monotonic() - begun,
        endings=Counter(f"{each.code}{' and Retry-After' if each.retry_after else ''}" for each in endings),
        state=state,
    )


async def _until_one_has_begun(clients: Clients) -> None:
    async with asyncio.timeout(BEGINS_WITHIN_S):
        while not clients.begun:
            await asyncio.sleep(0.05)


async def until_noticed(clients: Clients, begun: float, server: str = FAULTY) -> str:
    while time.monotonic() - begun < 120:
        status, said = await clients.health(server)
        if status == 503:
            return said
        await asyncio.sleep(0.02)
    raise AssertionError("not noticed within 120 s")


async def _until_back(clients: Clients, begun: float) -> None:
    while time.monotonic() - begun < BACK_WITHIN_S:
        if (await clients.health())[0] == 200:
            ending = await clients.ask(FAULTY, {"model": "any", "input": "ECHO:back"})
            if ending.code == "completed":
                return
        await asyncio.sleep(0.2)
    raise AssertionError(f"not back within {BACK_WITHIN_S:.0f} s")


def left_of_earlier_launches(run: NgRun, server: str = FAULTY) -> list[str]:
    """Folders of a server's launches before the one that runs."""
    run_id = run.record()["run_id"]
    folders = sorted(Path("/tmp").glob(f"lv-m-{run_id}-{server}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return [str(folder) for folder in folders[:-1]]


def short_form() -> list[tuple[str, str]]:
    """A process that is gone and one that is stopped: each start after it takes a minute."""
    return [("worker killed", "32 in flight"), ("API server stopped", "streaming")]


def whole_form() -> list[tuple[str, str]]:
    """In an order that no fault can rely on; the same one for all who collect the tests of a day."""
    cells = [(fault, load) for fault in FAULTS for load in LOADS]
    random.Random(time.strftime("%Y-%m-%d")).shuffle(cells)
    return cells


def cells_asked_for() -> list[tuple[str, str]]:
    """All of them when the environment says so, as scripts/fault-matrix does."""
    return whole_form() if os.environ.get("LOCAL_VLLM_FAULT_MATRIX") == "whole" else short_form()
