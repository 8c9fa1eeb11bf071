"""A whole configuration, checked and frozen: the global keys, the servers, the registry of implementations.

How it is put together from files and a command line is compose.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator

from local_vllm.config.apps import AGENTS, RESOURCES, settings_class
from local_vllm.config.described import DescribedNodes, described_nodes, named_apart
from local_vllm.config.fields import JsonObject, Number, PositiveInt, ServerReference, Settings
from local_vllm.config.model_servers import (
    ChatSettings,
    ModelServerSettings,
    OpenAIModelSettings,
    VLLMModelSettings,
)
from local_vllm.config.own_engines import (
    LocalVLLMModelProxySettings,
    LocalVLLMModelSettings,
    OwnEngineSettings,
    VLLMServeKwargs,
)

__all__ = [
    "AGENTS",
    "GLOBAL_KEYS",
    "KINDS",
    "MODELS",
    "REGISTRY",
    "RESOURCES",
    "ChatSettings",
    "DescribedNodes",
    "GlobalSettings",
    "LocalVLLMModelProxySettings",
    "LocalVLLMModelSettings",
    "ModelServerSettings",
    "OpenAIModelSettings",
    "OwnEngineSettings",
    "RunConfig",
    "ServerConfig",
    "ServerReference",
    "Settings",
    "VLLMModelSettings",
    "VLLMServeKwargs",
    "implementations",
]

MODELS = "responses_api_models"
KINDS = (MODELS, AGENTS, RESOURCES)

# Kind -> implementation -> what it can be told. A new kind of model server is a new line; agents and resources
# servers are apps, and say it themselves.
REGISTRY: Mapping[str, Mapping[str, type[Settings]]] = {
    MODELS: {
        "local_vllm_model": LocalVLLMModelSettings,
        "local_vllm_model_proxy": LocalVLLMModelProxySettings,
        "openai_model": OpenAIModelSettings,
        "vllm_model": VLLMModelSettings,
    },
    AGENTS: {},
    RESOURCES: {},
}


def implementations() -> dict[str, str]:
    """Every kind of model server there is."""
    return {name: kind for kind, known in REGISTRY.items() for name in known}


Described = Annotated[
    tuple[DescribedNodes, ...], BeforeValidator(described_nodes), AfterValidator(named_apart)
]


def _keys(value: Any) -> Any:
    """A list of keys, or one text with commas between them. No message shows what was given."""
    if value is None:
        return None
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        raise ValueError("must be a list of keys")
    keys = [str(key).strip() for key in given]
    if not keys or not all(key.isascii() and key.isprintable() and " " not in key and key for key in keys):
        raise ValueError("must be keys of printable characters without blanks, and at least one")
    return keys


ApiKeys = Annotated[tuple[SecretStr, ...], BeforeValidator(_keys)]


class GlobalSettings(Settings):
    """The global keys, one set for all commands: each reads what concerns it."""

    aliases: ClassVar = {"concurrency": "num_samples_in_parallel", "HF_TOKEN": "hf_token"}

    config_paths: tuple[str, ...] = Field(
        (), description="Config files, merged from left to right; from here, else the shipped ones."
    )
    model: str | None = Field(None, description="Serve this model by its shipped config, or the generic one.")
    http_host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    http_port: int = Field(11000, ge=1, le=65535, description="Port of the gateway and of every server.")
    api_keys: ApiKeys | None = Field(
        None, description="Keys, one of which clients send as a bearer token; keep them in env.yaml."
    )
    api_keys_file: str | None = Field(
        None, description="File with such keys, one a line; it may be changed while the run goes on."
    )
    allow_unauthenticated: bool = Field(
        False, description="Listen where others can reach the servers, and ask nobody for a key."
    )
    client_api_key: SecretStr | None = Field(
        None, description="The key that ng_call and ng_collect_rollouts send; LOCAL_VLLM_API_KEY wins."
    )
    ray_address: str | None = Field(
        None,
        description="Ray cluster to join; default: RAY_ADDRESS, else a private one that ends with the run.",
    )
    logical_gpus: Number | None = Field(
        None, ge=0, description="GPUs that a private cluster pretends to have, on a machine without any."
    )
    dry_run: bool = Field(
        False, description="Draw the plan and show how each engine would be started; start nothing."
    )
    cluster: Described | None = Field(
        None,
        description="With dry_run: a cluster described by hand, as nodes x GPUs (4x8, 1x0+4x8), as a list "
        "of nodes, or as the path of a YAML file with one.",
    )
    hf_token: SecretStr | None = Field(
        None, description="Token of the Hugging Face Hub; keep it in env.yaml."
    )
    agent_name: str | None = Field(None, description="Agent (or model) server to drive.")
    input_jsonl_fpath: str | None = Field(None, description="Rows to roll out.")
    output_jsonl_fpath: str | None = Field(None, description="Where finished rollouts go, one line each.")
    limit: PositiveInt | None = Field(None, description="Take this many rows at most.")
    num_repeats: PositiveInt = Field(1, description="Roll each row out this many times.")
    num_samples_in_parallel: PositiveInt | None = Field(
        None, description="Rollouts in flight at once; concurrency is the same key."
    )
    responses_create_params: JsonObject = Field(
        {}, description="Request fields for every rollout, such as temperature; they beat those of the row."
    )
    resume_from_cache: bool = Field(False, description="Go on with the rollouts that the output file lacks.")
    entrypoint: str | None = Field(None, description="ng_test: the part whose tests to run.")

    @field_validator("cluster")
    @classmethod
    def _described_alone(cls, value: Any, info: ValidationInfo) -> Any:
        # A key that is wrong itself is absent from the data, and has been told.
        if value is None:
            return value
        if not info.data.get("dry_run", True):
            raise ValueError("describes machines to draw a plan on: add +dry_run=true, or leave it out")
        for key in ("ray_address", "logical_gpus"):
            if info.data.get(key) is not None:
                raise ValueError(f"is given beside {key}: a plan is drawn on one cluster, so keep one of the two")
        return value


GLOBAL_KEYS = frozenset(GlobalSettings.model_fields) | frozenset(GlobalSettings.aliases)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One server of a run. `settings` are what its implementation can be told.

    `app` is the file or module of an agent or a resources server; None for a model server.
    """

    name: str
    kind: str
    implementation: str
    settings: Settings
    app: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """The class of an app's settings is made where the app is loaded, so it does not travel: its values do."""
        if self.app is None:
            return ServerConfig, (self.name, self.kind, self.implementation, self.settings)
        return _with_app, (self.name, self.kind, self.implementation, self.settings.model_dump(), self.app)


def _with_app(name: str, kind: str, implementation: str, told: dict[str, Any], app: str) -> ServerConfig:
    settings = settings_class(app, kind).model_validate(told)
    return ServerConfig(name, kind, implementation, settings, app)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything a run was told. `servers` are in config order, `files` in merge order (env.yaml last).

    `notices` are sentences for the user: nothing is wrong, but something is worth knowing.
    """

    settings: GlobalSettings
    servers: tuple[ServerConfig, ...]
    notices: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
