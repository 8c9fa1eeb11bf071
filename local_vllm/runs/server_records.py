"""What a run's record says of its servers: from the configuration, the plan, and each engine's status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from local_vllm.config.redact import redacted
from local_vllm.config.schema import (
    MODELS,
    RESOURCES,
    LocalVLLMModelProxySettings,
    OpenAIModelSettings,
    RunConfig,
    ServerConfig,
    ServerReference,
    VLLMModelSettings,
)
from local_vllm.engine.spec import EngineSpec, EngineState, EngineStatus
from local_vllm.runs.record import ServerRecord


def server_records(config: RunConfig, specs: Sequence[EngineSpec]) -> tuple[ServerRecord, ...]:
    """One for each server, in config order; `specs` are those of the engines that have been placed."""
    by_server = {spec.server: spec for spec in specs}
    return tuple(_server_record(server, by_server.get(server.name)) for server in config.servers)


def _server_record(server: ServerConfig, spec: EngineSpec | None) -> ServerRecord:
    record = ServerRecord(
        server.name, server.implementation, _model(server), url="", kind=server.kind, uses=_uses(server)
    )
    if spec is None:
        return replace(record, engine_url=_engine_url(server))
    return replace(
        record,
        state=str(EngineState.STARTING),
        node_address=spec.placement.master_address,
        log_path=str(spec.log_path),
        placement=spec.placement,
        max_restarts=spec.max_restarts,
    )


def with_status(server: ServerRecord, status: EngineStatus, spec: EngineSpec) -> ServerRecord:
    """The record after a status, the engine being where `spec` says: unchanged when it is another server's."""
    if status.server != server.name:
        return server
    return replace(
        server,
        state=str(status.state),
        detail=status.detail,
        engine_url=status.base_url,
        restarts=status.restarts,
        node_address=spec.placement.master_address,
        placement=spec.placement,
    )


def server_url(serve_url: str, server: ServerRecord) -> str:
    """Where a server answers: the root of its API, or of its tools."""
    return f"{serve_url}/{server.name}" + ("" if server.kind == RESOURCES else "/v1")


def _uses(server: ServerConfig) -> tuple[str, ...]:
    return tuple(value.name for _, value in server.settings if isinstance(value, ServerReference))


def _model(server: ServerConfig) -> str:
    if server.kind != MODELS:
        return ""
    if isinstance(server.settings, LocalVLLMModelProxySettings):
        return f"that of {server.settings.model_server.name}"
    return server.settings.model


def _engine_url(server: ServerConfig) -> str:
    """Where somebody else's engine is."""
    if not isinstance(server.settings, VLLMModelSettings | OpenAIModelSettings):
        return ""
    return redacted(", ".join(server.settings.base_url))
