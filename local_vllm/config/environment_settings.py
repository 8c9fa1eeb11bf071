"""What agents and resources servers can be told. Each implementation adds its own keys in its `Settings`.

Obeying the settings is left to the implementations, which are apps: files that apps.py finds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from local_vllm.config.fields import PositiveInt, ServerReference, Settings, named_server


class ModelServerReference(ServerReference):
    """A model server of the run."""

    type: Literal["responses_api_models"] = "responses_api_models"


class ResourcesServerReference(ServerReference):
    """A resources server of the run."""

    type: Literal["resources_servers"] = "resources_servers"


ModelServer = Annotated[ModelServerReference, BeforeValidator(named_server)]
ResourcesServer = Annotated[ResourcesServerReference, BeforeValidator(named_server)]


class AppSettings(Settings):
    """What every app understands."""

    entrypoint: str = Field("app.py", description="The implementation's file, in the implementation's folder.")
    num_workers: PositiveInt = Field(1, description="HTTP replicas of this server.")


class ResourcesServerSettings(AppSettings):
    """A resources server: the tools of an environment, and its verdict."""

    domain: str | None = Field(None, description="Accepted from existing configs; nothing is read from it.")
    verified: bool | None = Field(None, description="Accepted from existing configs; nothing is read from it.")
    description: str | None = Field(None, description="What the environment is about; for people.")
    value: str | None = Field(None, description="What a model learns from it; for people.")


class AgentSettings(AppSettings):
    """An agent: drives a model through an environment."""

    model_server: ModelServer = Field(description="The model server that answers, by name, or policy_model.")
    resources_server: ResourcesServer = Field(description="The environment, by the name of its resources server.")
    resources_server_in_process: bool = Field(
        True,
        description="Run the environment inside the agent's process; false asks the resources server over HTTP, "
        "for one with workers, or state between rollouts, of its own.",
    )
    max_steps: PositiveInt | None = Field(
        None, description="How often the model is asked in one rollout at most; the agent has a default."
    )
    datasets: list[dict[str, Any]] = Field(
        [], description="Accepted from existing configs; ng_collect_rollouts is told its rows by input_jsonl_fpath."
    )
