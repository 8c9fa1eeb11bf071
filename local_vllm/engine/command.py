"""From an engine's spec to the exact command line and environment of its `vllm serve`. Pure.

What we set ourselves is listed here; the placement's part comes from plan/, the CPU engine's part from cpu_flags.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local_vllm.cluster.machine import EngineKind
from local_vllm.config.vllm_serve_flags import snake_case, to_argv
from local_vllm.engine import cpu_flags
from local_vllm.engine.spec import EngineSpec
from local_vllm.engine.worker_variables import worker_variables
from local_vllm.plan.vllm_flags import placement_env, placement_flags

# Ray tells its workers who they are in variables that a driver of its own must not inherit.
_KEPT_RAY_VARIABLES = ("RAY_AUTH_", "RAY_TLS_", "RAY_USE_TLS")
_NEVER_S = "31536000"
SECRET_VARIABLES = ("VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True)
class Site:
    """What is only known on the engine's node.

    Attributes:
        kind: which vLLM is installed there.
        port: a free port of the node.
        node_address: the node's address as Ray knows it.
        ray_address: where the engine's own driver joins the cluster.
        weights: folder or Hub id to load.
        model_config: the model's config.json; empty if it could not be read.
        scratch: a folder of this engine alone.
        environment: the environment of the process that launches it.
    """

    kind: EngineKind
    port: int
    node_address: str
    ray_address: str
    weights: str
    model_config: Mapping[str, object]
    scratch: Path
    environment: Mapping[str, str] = field(repr=False)


def serve_flags(spec: EngineSpec, site: Site) -> dict[str, object]:
    """Every flag of the command line, the configuration's and ours, in snake_case."""
    wanted = {snake_case(name): value for name, value in spec.vllm_serve_kwargs.items()}
    defaults: dict[str, object] = {"served_model_name": spec.served_name}
    injected: dict[str, object] = {
        "host": "0.0.0.0",
        "port": site.port,
        "distributed_executor_backend": "ray",
        "data_parallel_backend": "ray",
        "download_dir": str(spec.hf_home / "hub"),
    }
    if site.kind == "cpu":
        defaults |= cpu_flags.flags(wanted, spec.placement.topology, site.model_config)
    return defaults | wanted | placement_flags(spec.placement) | injected


def serve_command(spec: EngineSpec, site: Site) -> list[str]:
    """The command line of the engine."""
    flags = serve_flags(spec, site)
    if site.kind == "cpu":
        # The CPU distribution is not called `vllm`, and its `vllm` script looks that name up and fails.
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", site.weights, *to_argv(flags)]
    flags.setdefault("api_server_count", spec.placement.topology.data_parallel_size)
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", site.weights, *to_argv(flags)]


def serve_environment(spec: EngineSpec, site: Site) -> dict[str, str]:
    """The whole environment of the engine: secrets included, so it is never shown."""
    inherited = {name: value for name, value in site.environment.items() if _is_inherited(name, value)}
    ours = {
        "RAY_ADDRESS": site.ray_address,
        "VLLM_HOST_IP": site.node_address,
        "VLLM_API_KEY": spec.api_key,
        # vLLM looks here for the list of variables that it must not show in Ray's state.
        "VLLM_CONFIG_ROOT": str(site.scratch),
        "HF_HOME": str(spec.hf_home),
        "PYTHONUNBUFFERED": "1",
    }
    if spec.hf_token:
        ours["HF_TOKEN"] = spec.hf_token
    if spec.debug:
        ours["VLLM_LOGGING_LEVEL"] = "DEBUG"
    if site.kind == "cpu":
        ours |= cpu_flags.ENVIRONMENT
    quiet = {"VLLM_NO_USAGE_STATS": "1"}
    if not spec.show_stats:
        # The statistics themselves stay on: /metrics is made of them.
        quiet["VLLM_LOG_STATS_INTERVAL"] = _NEVER_S
    configured = dict(spec.vllm_serve_env_vars)
    for_workers = worker_variables(configured, site.environment)
    return inherited | quiet | ours | placement_env(spec.placement) | configured | for_workers


def _is_inherited(name: str, value: str) -> bool:
    if name.startswith("RAY_"):
        return name.startswith(_KEPT_RAY_VARIABLES)
    # Ray hides the GPUs from an actor that asked for none by emptying this variable; vLLM's workers get theirs from Ray.
    return not (name == "CUDA_VISIBLE_DEVICES" and not value)
