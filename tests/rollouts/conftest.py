"""Fixtures of the collector's tests: an agent that does as it is told, in this process or in one of its own."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from collector_process import AgentProcess, agent_process
from rich.console import Console
from stand_in_agent import StandInAgent


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
