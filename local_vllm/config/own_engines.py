"""What a server whose engine is ours can be told: local_vllm_model and its proxy, and checks beyond types.

Which flags `vllm serve` knows is vllm_serve_flags.py's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from local_vllm.config.fields import Number, PositiveInt, Seconds, ServerReference, named_server, no_bool
from local_vllm.config.findings import REQUIRED
from local_vllm.config.model_servers import ChatSettings
from local_vllm.config.vllm_serve_flags import flag_problems, snake_case
from local_vllm.errors import Problem

PACK_STRATEGY = "VLLM_RAY_DP_PACK_STRATEGY"
PACK_STRATEGIES = ("strict", "fill", "span")
ENV_VARS_SET_BY_US = {
    "VLLM_API_KEY": "write it as `api_key` of the server, one level up",
    "HF_HOME": "write it as `hf_home` of the server, one level up",
    "RAY_ADDRESS": "write it as the global key `ray_address`",
    "VLLM_CONFIG_ROOT": "the engine's own launch sets it, to keep secrets out of Ray's state",
    "LOCAL_VLLM_DIRECT_RESPONSES": "write `direct_responses: true` of the server, one level up",
    "VLLM_DP_SIZE": "write it as `data_parallel_size` of vllm_serve_kwargs",
    "VLLM_DP_RANK": "vLLM numbers its ranks itself",
    "VLLM_DP_RANK_LOCAL": "vLLM numbers its ranks itself",
    "VLLM_DP_MASTER_IP": "the placement plan sets it",
    "VLLM_DP_MASTER_PORT": "vLLM takes a free one",
    "VLLM_HOST_IP": "the placement plan sets it",
    "VLLM_RAY_DP_PLACEMENT_NODE_IPS": "the placement plan sets it",
}
# Flags of vLLM 0.32 that cannot work in an engine that we place, when they are on.
SWITCHES_REFUSED = {
    "enable_elastic_ep": "the number of ranks would change, and the placement plan is made once",
    "enable_fault_tolerance": "vLLM refuses it unless an external load balancer stands before its ranks",
}
# vLLM refuses these under fill: their ranks 0-7, 8-15, ... must share a node.
WHOLE_NODE_BACKENDS = ("deepep_high_throughput", "deepep_low_latency")


def _environment(value: Any) -> Any:
    """Variables as strings: true is 1, false is 0, and null is a variable that is not set."""
    if not isinstance(value, Mapping):
        return value
    given = {name: item for name, item in value.items() if item is not None}
    return {name: str(int(item)) if isinstance(item, bool) else item for name, item in given.items()}


class VLLMServeKwargs(BaseModel):
    """Flags of `vllm serve`, in snake_case. The three sizes are required; any other flag may be added."""

    model_config = ConfigDict(frozen=True, extra="allow")

    data_parallel_size: PositiveInt = Field(description="How many copies of the model (DP).")
    tensor_parallel_size: PositiveInt = Field(description="GPUs that share each layer of a copy (TP).")
    pipeline_parallel_size: PositiveInt = Field(description="Groups of such GPUs in a row for a copy (PP).")
    data_parallel_size_local: PositiveInt | None = Field(
        None, description="Copies on each node under strict; chosen by the placement plan when it is absent."
    )
    prefill_context_parallel_size: PositiveInt | None = Field(
        None, description="GPUs that share the prompt of a request (PCP): a copy takes TP x PP x PCP of them."
    )

    def flags(self) -> dict[str, Any]:
        """Every flag that was set, the sizes above included."""
        return self.model_dump(exclude_none=True)


def _snake_case_keys(value: Any) -> Any:
    return {snake_case(key): item for key, item in value.items()} if isinstance(value, Mapping) else value


class OwnEngineSettings(ChatSettings):
    """In front of an engine that is ours, which is started again when it is lost."""

    wait_for_engine_s: Annotated[float, BeforeValidator(no_bool), Field(ge=0)] = Field(
        30.0, description="How long a request waits for an engine that is being restarted, before it gets a 503."
    )
    retry_lost_requests: bool = Field(
        False, description="Ask a recovered engine again for what was in flight, once; streams are not."
    )


class LocalVLLMModelSettings(OwnEngineSettings):
    """local_vllm_model: a vllm_model whose engine is ours. base_url is filled in once the engine is up."""

    model: str = Field(description="A Hugging Face Hub id, or a local directory; /v1/models shows it.")
    api_key: SecretStr = Field(
        SecretStr("dummy"),
        description="The engine asks for it; dummy becomes a generated key where others could reach it.",
    )
    hf_home: str | None = Field(
        None, description="Cache of weights; default: HF_HOME of the environment, else ~/.cache/huggingface."
    )
    show_vllm_engine_stats: bool = Field(False, description="Log the engine's throughput and cache use.")
    debug: bool = Field(False, description="Verbose logs of the engine and its workers.")
    start_timeout_s: Seconds = Field(
        1800.0, description="How long the engine may take to become ready, the weights already on disk."
    )
    stall_timeout_s: Seconds | None = Field(
        30.0, description="An engine that generates nothing for so long, though it should, is restarted; null: never."
    )
    max_restarts: Annotated[Number, Field(ge=0)] = Field(
        5, description="How often an engine that was lost is started again; 5 min of health begin the count anew."
    )
    direct_responses: bool = Field(
        False, description="The engine's own /v1/responses answers as this server does, for clients that want no hop."
    )
    vllm_serve_kwargs: Annotated[VLLMServeKwargs, BeforeValidator(_snake_case_keys)] = Field(
        description="Flags of vllm serve: the three sizes below, and any other."
    )
    vllm_serve_env_vars: Annotated[dict[str, str], BeforeValidator(_environment)] = Field(
        repr=False, description=f"Environment of vllm serve: {PACK_STRATEGY} (strict, fill or span) at least."
    )

    @property
    def pack_strategy(self) -> str:
        """strict, fill or span."""
        return self.vllm_serve_env_vars[PACK_STRATEGY]

    @property
    def served_model_names(self) -> tuple[str, ...]:
        """The names by which the engine knows its model; requests to it carry the first."""
        names = self.vllm_serve_kwargs.flags().get("served_model_name") or self.model
        return (names,) if isinstance(names, str) else tuple(names)

    def resolved_hf_home(self) -> Path:
        """Where weights are kept, by this process's environment."""
        home = self.hf_home or os.environ.get("HF_HOME") or "~/.cache/huggingface"
        return Path(home).expanduser().absolute()

    @classmethod
    def further_problems(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().further_problems(raw)
        if "base_url" in raw:
            yield Problem("base_url", "must not be set here; it is filled in once the engine is up")
        if raw.get("direct_responses") is True and raw.get("is_responses_native") is True:
            yield Problem("direct_responses", "takes the place of what is_responses_native: true asks for: choose one")
        kwargs = raw.get("vllm_serve_kwargs")
        if isinstance(kwargs, Mapping):
            yield from _below("vllm_serve_kwargs", flag_problems(kwargs))
            yield from _below("vllm_serve_kwargs", _launch_problems(_snake_case_keys(kwargs)))
        env_vars = raw.get("vllm_serve_env_vars")
        if isinstance(env_vars, Mapping):
            yield from _below("vllm_serve_env_vars", _env_var_problems(env_vars))
        if isinstance(kwargs, Mapping) and isinstance(env_vars, Mapping):
            yield from _together_problems(_snake_case_keys(kwargs), env_vars)


def _env_var_problems(env_vars: Mapping[str, Any]) -> Iterator[Problem]:
    for name, remedy in ENV_VARS_SET_BY_US.items():
        if name in env_vars:
            yield Problem(name, f"must not be set here; {remedy}")
    strategy = env_vars.get(PACK_STRATEGY)
    if strategy is None:
        yield Problem(
            PACK_STRATEGY, f"{REQUIRED}: strict (a copy on one node), fill, or span (a copy over nodes)"
        )
    elif strategy not in PACK_STRATEGIES:
        yield Problem(PACK_STRATEGY, f"must be one of strict, fill and span, not {strategy!r}")


def _launch_problems(flags: Mapping[str, Any]) -> Iterator[Problem]:
    for name, reason in SWITCHES_REFUSED.items():
        if str(flags.get(name, False)).lower() != "false":
            yield Problem(name, f"must not be on: {reason}")
    servers = flags.get("api_server_count")
    if servers is not None and str(servers).lstrip("-").isdigit() and int(servers) < 1:
        yield Problem("api_server_count", f"must be at least 1, not {servers}: nothing would answer")


def _together_problems(flags: Mapping[str, Any], env_vars: Mapping[str, Any]) -> Iterator[Problem]:
    backend = flags.get("all2all_backend")
    if env_vars.get(PACK_STRATEGY) == "fill" and backend in WHOLE_NODE_BACKENDS:
        yield Problem(
            "vllm_serve_kwargs.all2all_backend",
            f"{backend} needs its ranks eight by eight on a node, which {PACK_STRATEGY}=fill does not "
            "promise, and vLLM refuses it: write strict",
        )


def _below(key: str, problems: Iterator[Problem]) -> Iterator[Problem]:
    return (Problem(f"{key}.{problem.path}", problem.message) for problem in problems)


class LocalVLLMModelProxySettings(OwnEngineSettings):
    """local_vllm_model_proxy: the engine of a local_vllm_model under other request-time settings."""

    aliases: ClassVar = {}

    model_server: Annotated[ServerReference, BeforeValidator(named_server)] = Field(
        description="The local_vllm_model whose engine answers, by name."
    )
