"""From the servers of a configuration to the engines that they need: topologies, then specs once they are placed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from local_vllm.cluster import machine
from local_vllm.config.schema import LocalVLLMModelSettings, RunConfig, ServerConfig
from local_vllm.engine.hub_variables import hub_variables
from local_vllm.engine.spec import EngineSpec
from local_vllm.engine.topology import topology_of
from local_vllm.engine.weights import local_folder
from local_vllm.plan.placement import Placement
from local_vllm.plan.topology import Topology
from local_vllm.serving.direct_settings import plain
from local_vllm.serving.request_settings import direct_settings

# What the documents write as the key of an engine that asks for none.
NO_KEY = "dummy"


def local_servers(config: RunConfig) -> list[ServerConfig]:
    """The servers whose engines are ours, in config order."""
    return [server for server in config.servers if isinstance(server.settings, LocalVLLMModelSettings)]


def topologies(config: RunConfig) -> list[Topology]:
    return [topology_of(server.name, server.settings) for server in local_servers(config)]


def engine_specs(
    config: RunConfig, placements: Sequence[Placement], run_id: str, logs: Path
) -> list[EngineSpec]:
    """One spec for each local server; `placements` are in the same order."""
    token = _hub_token(config)
    return [
        _spec(server.name, server.settings, placement, run_id, token, logs)
        for server, placement in zip(local_servers(config), placements, strict=True)
    ]


def _spec(
    name: str, settings: LocalVLLMModelSettings, placement: Placement, run_id: str, token: str | None, logs: Path
) -> EngineSpec:
    return EngineSpec(
        run_id=run_id,
        server=name,
        # A relative folder is meant from here, not from wherever the engine's process is started.
        model=local_folder(settings.model) or settings.model,
        served_name=settings.served_model_names[0],
        api_key=engine_key(settings.api_key.get_secret_value()),
        vllm_serve_kwargs=settings.vllm_serve_kwargs.flags(),
        vllm_serve_env_vars=settings.vllm_serve_env_vars,
        placement=placement,
        hf_home=settings.resolved_hf_home(),
        hf_token=token,
        show_stats=settings.show_vllm_engine_stats,
        debug=settings.debug,
        start_timeout_s=settings.start_timeout_s,
        log_path=logs / f"{name}.log",
        hub_variables=hub_variables(os.environ),
        stall_timeout_s=settings.stall_timeout_s,
        max_restarts=settings.max_restarts,
        direct_responses=plain(direct_settings(name, settings)) if settings.direct_responses else None,
    )


def engine_key(configured: str) -> str:
    """The engine listens on every interface: where others could reach it, `dummy` becomes a key of its own."""
    return secrets.token_urlsafe(32) if configured == NO_KEY and machine.has_outside_address() else configured


def _hub_token(config: RunConfig) -> str | None:
    if token := os.environ.get("HF_TOKEN"):
        return token
    return config.settings.hf_token.get_secret_value() if config.settings.hf_token else None
