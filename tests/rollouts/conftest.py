"""Fixtures of the collector's tests: an agent that does as it is told, in this process or in one of its own."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from collected_here import Collect
from collector_process import AgentProcess, agent_process, write_rows
from rich.console import Console
from stand_in_agent import AGENT, StandInAgent

from local_vllm.rollouts import failures
from local_vllm.rollouts.collect import Asked, Collector, Deadlines, tally_to_begin_with
from local_vllm.rollouts.failures import PATIENCE, Patience
from local_vllm.rollouts.files import Paths, held
from local_vllm.rollouts.rows import checked_input
from local_vllm.rollouts.summary import Summary


@pytest.fixture
async def agent() -> AsyncIterator[StandInAgent]:
    """The stand-in in this event loop, with `url` for where it is."""
    stand_in = StandInAgent()
    async with TestServer(stand_in.app) as server:
        stand_in.url = str(server.make_url("")).rstrip("/")
        yield stand_in


@pytest.fixture(scope="session")
def shared_process() -> Iterator[AgentProcess]:
    with agent_process() as process:
        yield process


@pytest.fixture
def served(shared_process: AgentProcess) -> AgentProcess:
    """The stand-in as a process of its own, up."""
    shared_process.control(down=False, most_in_flight=0)
    return shared_process


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No env.yaml and no runs of whoever runs the tests."""
    (tmp_path / "env.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number of attempts, with hardly a wait between them."""
    shortened = {failure: Patience(p.attempts, 0.01, p.budgeted) for failure, p in PATIENCE.items()}
    monkeypatch.setattr(failures, "PATIENCE", shortened)
    monkeypatch.setattr(failures, "LONGEST_WAIT_S", 0.05)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "rollouts.jsonl"


@pytest.fixture
def collect(agent: StandInAgent, tmp_path: Path, output: Path, console: Console, short_waits: None) -> Collect:
    """A collection in this process; `deadlines`, `console`, `agent_name`, `resume`, `limit` and fields of Asked."""

    async def collected(rows: list[dict[str, Any]], **more: Any) -> Summary:
        deadlines, shown = more.pop("deadlines", Deadlines()), more.pop("console", console)
        named, resume, limit = more.pop("agent_name", AGENT), more.pop("resume", False), more.pop("limit", None)
        file = write_rows(tmp_path / "rows.jsonl", rows)
        with held(Paths(output)) as collection:
            then = collection.identity.rows if collection.identity else 0
            values = {"num_repeats": 1, "concurrency": 20, "responses_create_params": {}} | more
            params = values["responses_create_params"]
            read = checked_input(file, limit=limit, agent=named, earlier_rows=then, params=params)
            asked = Asked(read, named, **values)
            tally = tally_to_begin_with(asked, collection, resume, console.print)
            return await Collector(asked, collection, tally, shown, deadlines).collect(lambda name: f"{agent.url}/{name}")

    return collected
