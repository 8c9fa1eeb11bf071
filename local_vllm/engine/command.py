"""From an engine's spec to the exact command line and environment of its `vllm serve`. Pure.

What we set ourselves is listed here; the placement's part comes from plan/, the CPU engine's part from cpu_flags.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local_vllm.cluster.machine import EngineKind
from local_vllm.config.vllm_serve_flags import snake_case, to_argv
from local_vllm.engine import cpu_flags
from local_vllm.engine.hub_variables import for_an_engine
from local_vllm.engine.spec import DIRECT_VARIABLE, EngineSpec
from local_vllm.engine.worker_variables import worker_variables
from local_vllm.plan.vllm_flags import placement_env, placement_flags
from local_vllm.processes.members import FOLDER

# Ray tells its workers who they are in variables that a driver of its own must not inherit.
_KEPT_RAY_VARIABLES = ("RAY_AUTH_", "RAY_TLS_", "RAY_USE_TLS")
# With one data-parallel rank vLLM would take these from the shell of whoever started Ray.
_NOT_INHERITED = ("VLLM_DP_SIZE", "VLLM_DP_RANK", "VLLM_DP_RANK_LOCAL", "VLLM_DP_MASTER_PORT")
_NEVER_S = "31536000"
# The longest path that Linux takes for a socket; vLLM calls its own by a UUID.
_SOCKET_PATH_CHARACTERS = 107
_SOCKET_NAME_CHARACTERS = 1 + 36
# The CPU distribution is not called `vllm`, and its `vllm serve` looks that name up and fails.
_MODULES: Mapping[EngineKind, tuple[str, ...]] = {
    "gpu": ("vllm.entrypoints.cli.main", "serve"),
    "cpu": ("vllm.entrypoints.openai.api_server",),
}
# Named only: it is of a layer above, and vLLM imports it.
DIRECT_MIDDLEWARE = "local_vllm.serving.direct.DirectResponses"
SECRET_VARIABLES = ("VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True)
class Site:
    """What is only known on the engine's node.

    A dry run, which is not there, has words such as `<free port>` in their place.

    Attributes:
        kind: which vLLM is installed there.
        port: a free port of the node, or a word for it.
        node_address: the node's address as Ray knows it.
        ray_address: where the engine's own driver joins the cluster.
        weights: folder or Hub id to load.
        model_config: the model's config.json; empty if it could not be read, None if it is not there yet.
        scratch: a folder of this engine alone.
        environment: the environment of the process that launches it.
    """

    kind: EngineKind
    port: int | str
    node_address: str
    ray_address: str
    weights: str
    model_config: Mapping[str, object] | None
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
    else:
        defaults["api_server_count"] = spec.placement.topology.data_parallel_size
    if spec.direct_responses is not None:
        injected["middleware"] = [DIRECT_MIDDLEWARE, *_given_middleware(wanted)]
    return defaults | wanted | placement_flags(spec.placement) | injected


def _given_middleware(wanted: Mapping[str, object]) -> list[object]:
    """That of the configuration. vLLM puts the last one outermost: the user's own see every request before ours."""
    given = wanted.get("middleware")
    return list(given) if isinstance(given, list | tuple) else [given] if given else []


def serve_command(spec: EngineSpec, site: Site) -> list[str]:
    """The command line of the engine, as it is executed."""
    return [sys.executable, "-m", *_MODULES[site.kind], *_arguments(spec, site)]


def typed_command(spec: EngineSpec, site: Site) -> list[str]:
    """The same command line as a person types it: where there is a `vllm` script, it is that module's."""
    program = ["vllm", "serve"] if site.kind == "gpu" else ["python", "-m", *_MODULES[site.kind]]
    return [*program, *_arguments(spec, site)]


def _arguments(spec: EngineSpec, site: Site) -> list[str]:
    model = ["--model", site.weights] if site.kind == "cpu" else [site.weights]
    return [*model, *to_argv(serve_flags(spec, site))]


def serve_environment(spec: EngineSpec, site: Site) -> dict[str, str]:
    """The whole environment of the engine: secrets included, so it is never shown."""
    inherited = {name: value for name, value in site.environment.items() if _is_inherited(name, value)}
    return inherited | our_environment(spec, site)


def our_environment(spec: EngineSpec, site: Site) -> dict[str, str]:
    """The variables that we set and those of the configuration, whatever is inherited. They hold secrets."""
    ours = {
        "RAY_ADDRESS": site.ray_address,
        "VLLM_HOST_IP": site.node_address,
        "VLLM_API_KEY": spec.api_key,
        # vLLM looks here for the list of variables that it must not show in Ray's state.
        "VLLM_CONFIG_ROOT": str(site.scratch),
        "HF_HOME": str(spec.hf_home),
        "PYTHONUNBUFFERED": "1",
        "VLLM_NO_USAGE_STATS": "1",
        FOLDER: str(spec.members),
        **_sockets_in(spec.members),
        **_counters_in(spec, site),
        **for_an_engine(spec.hub_variables),
    }
    if spec.direct_responses is not None:
        ours[DIRECT_VARIABLE] = json.dumps(spec.direct_responses)
    if spec.hf_token:
        ours["HF_TOKEN"] = spec.hf_token
    if spec.debug:
        ours["VLLM_LOGGING_LEVEL"] = "DEBUG"
    if not spec.show_stats:
        # The statistics themselves stay on: /metrics is made of them.
        ours["VLLM_LOG_STATS_INTERVAL"] = _NEVER_S
    if site.kind == "cpu":
        ours |= cpu_flags.ENVIRONMENT
    configured = dict(spec.vllm_serve_env_vars)
    return ours | placement_env(spec.placement) | configured | worker_variables(configured, site.environment)


def _sockets_in(folder: Path) -> dict[str, str]:
    """Have vLLM's own sockets go with the folder: processes that are killed leave them behind."""
    fits = len(str(folder)) + _SOCKET_NAME_CHARACTERS <= _SOCKET_PATH_CHARACTERS
    return {"VLLM_RPC_BASE_PATH": str(folder)} if fits else {}


def _counters_in(spec: EngineSpec, site: Site) -> dict[str, str]:
    """The same for the files in which several API servers share what they count, which need the folder to be there."""
    several = str(serve_flags(spec, site).get("api_server_count") or 1) != "1"
    return {"PROMETHEUS_MULTIPROC_DIR": str(spec.members)} if several else {}


def _is_inherited(name: str, value: str) -> bool:
    if name.startswith("RAY_"):
        return name.startswith(_KEPT_RAY_VARIABLES)
    if name in _NOT_INHERITED:
        return False
    # Ray hides the GPUs from an actor that asked for none by emptying this variable; vLLM's workers get theirs from Ray.
    return not (name == "CUDA_VISIBLE_DEVICES" and not value)
