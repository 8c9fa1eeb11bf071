"""What the servers' tests stand on is used here too: an engine at the HTTP boundary, and uvicorn."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "serving"))

from rollout_world import Client, ScriptedEngine, agent, neighbours, scripted_engine, served  # noqa: E402
from talking_world import World  # noqa: E402


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as stand_in:
        yield stand_in


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[Client]:
    """A simple agent over the stand-in engine, with the tools of `World`."""
    async with served(agent(neighbours(engine, World))) as found:
        yield found
