"""Model servers as the tests build them, over stand-in engines."""

from __future__ import annotations

from stand_in_engine import MODEL, StandInEngine

from local_vllm.protocol import Converter, ConverterSettings
from local_vllm.protocol.completions import Render
from local_vllm.serving.admission import MAX_IN_FLIGHT
from local_vllm.serving.client import EngineClient, Timeouts
from local_vllm.serving.endpoints import EndpointSource, FixedEndpoints
from local_vllm.serving.http_transport import HTTPTransport
from local_vllm.serving.model_server import ModelServer
from local_vllm.serving.requests import Limits
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
    render: Render | None = None,
    max_in_flight: int = MAX_IN_FLIGHT,
    replica: str = "",
) -> ModelServer:
    client = EngineClient(HTTPTransport(), timeouts)
    converter = Converter(settings, render=render)
    sessions = Sessions(name, SECRET)
    return ModelServer(
        name,
        model,
        source,
        converter,
        client,
        sessions=sessions,
        limits=limits,
        max_in_flight=max_in_flight,
        replica=replica,
    )


def over(*engines: StandInEngine, api_key: str = "EMPTY") -> FixedEndpoints:
    return FixedEndpoints([engine.base_url for engine in engines], api_key, MODEL)
