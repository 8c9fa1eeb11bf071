"""Model servers over stand-in engines, each under a real uvicorn."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from stand_in_engine import MODEL, StandInEngine, engine, mounted_at, serving

from local_vllm.protocol import Converter, ConverterSettings
from local_vllm.serving.aiohttp_transport import AiohttpTransport
from local_vllm.serving.asgi import Limits
from local_vllm.serving.client import EngineClient, Timeouts
from local_vllm.serving.endpoints import EndpointSource, FixedEndpoints
from local_vllm.serving.model_server import ModelServer
from local_vllm.serving.sessions import Sessions

SECRET = b"a secret of this deployment"


def model_server(
    source: EndpointSource,
    *,
    name: str = "policy_model",
    model: str = "my/model",
    settings: ConverterSettings = ConverterSettings(),
    limits: Limits = Limits(),
    timeouts: Timeouts = Timeouts(),
) -> ModelServer:
    client = EngineClient(AiohttpTransport(), timeouts)
    converter = Converter(settings)
    return ModelServer(
        name, model, source, converter, client, sessions=Sessions(name, SECRET), limits=limits
    )


def over(*engines: StandInEngine, api_key: str = "EMPTY") -> FixedEndpoints:
    return FixedEndpoints([engine.base_url for engine in engines], api_key, MODEL)


@pytest.fixture
async def one_engine() -> AsyncIterator[StandInEngine]:
    async with engine() as stand_in:
        yield stand_in


@pytest.fixture
async def address(one_engine: StandInEngine) -> AsyncIterator[str]:
    """A model server over `one_engine`, mounted at /policy_model as Ray Serve would have it."""
    async with serving(mounted_at("/policy_model", model_server(over(one_engine)))) as where:
        yield where + "/policy_model"
