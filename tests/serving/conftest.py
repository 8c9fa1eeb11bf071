"""Model servers over stand-in engines, each under a real uvicorn."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from servers_under_test import model_server, over
from stand_in_engine import StandInEngine, engine, mounted_at, serving


@pytest.fixture
async def one_engine() -> AsyncIterator[StandInEngine]:
    async with engine() as stand_in:
        yield stand_in


@pytest.fixture
async def address(one_engine: StandInEngine) -> AsyncIterator[str]:
    """A model server over `one_engine`, mounted at /policy_model as Ray Serve would have it."""
    async with serving(mounted_at("/policy_model", model_server(over(one_engine)))) as where:
        yield where + "/policy_model"
