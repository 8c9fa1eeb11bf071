"""What a model server can be told: a pydantic model for each implementation, and checks beyond types.

The field descriptions are the reference that `ng_run --help` prints. Obeying the settings is left to others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from local_vllm.config.findings import REQUIRED
from local_vllm.config.vllm_serve_flags import flag_problems, snake_case
from local_vllm.errors import Problem

PACK_STRATEGY = "VLLM_RAY_DP_PACK_STRATEGY"
PACK_STRATEGIES = ("strict", "fill", "span")
ENV_VARS_SET_BY_US = {
    "VLLM_API_KEY": "write it as `api_key` of the server, one level up",
    "HF_HOME": "write it as `hf_home` of the server, one level up",
    "RAY_ADDRESS": "write it as the global key `ray_address`",
    "VLLM_CONFIG_ROOT": "the engine's own launch sets it, to keep secrets out of Ray's state",
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
# What an engine's own Responses API cannot do for us.
NOT_NATIVE = {
    "return_token_id_information": True,
    "sequential_reasoning_allowed": False,
    "use_completions_api": True,
}
_KEPT_THERE = "who is asked keeps the responses; leave it out"
# How the name of a file is told from a misspelled word, where it has no slash.
STORE_FILES = (".db", ".sqlite", ".sqlite3")
# vLLM refuses these under fill: their ranks 0-7, 8-15, ... must share a node.
WHOLE_NODE_BACKENDS = ("deepep_high_throughput", "deepep_low_latency")


def no_bool(value: Any) -> Any:
    """Keeps true from being taken for 1."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


def _split_urls(value: Any) -> Any:
    urls = value.split(",") if isinstance(value, str) else value
    if not isinstance(urls, list | tuple):
        return urls
    return tuple(_url(url) for url in urls if not isinstance(url, str) or url.strip())


def _url(url: Any) -> Any:
    if not isinstance(url, str) or not url.strip().startswith(("http://", "https://")):
        raise ValueError(f"must be a URL that begins with http:// or https://, not {url!r}")
    if "@" in urlsplit(url.strip()).netloc:
        raise ValueError("must not hold a user name or a password: write what opens the engine as `api_key`")
    return url.strip().rstrip("/")


def _environment(value: Any) -> Any:
    """Variables as strings: true is 1, false is 0, and null is a variable that is not set."""
    if not isinstance(value, Mapping):
        return value
    given = {name: item for name, item in value.items() if item is not None}
    return {name: str(int(item)) if isinstance(item, bool) else item for name, item in given.items()}


def _tags(tags: tuple[str, str]) -> tuple[str, str]:
    if not all(tag.strip() for tag in tags) or tags[0] == tags[1]:
        raise ValueError(f"must be two different tags, the opening and the closing one, not {list(tags)}")
    return tags


def _store(value: Any) -> Any:
    if not isinstance(value, str) or value in ("memory", "none"):
        return "none" if value is False else value
    if "/" not in value and Path(value).suffix not in STORE_FILES:
        raise ValueError(
            f"must be memory, none, or the path of an SQLite file ({', '.join(STORE_FILES)}), not {value!r}"
        )
    return str(Path(value).expanduser().absolute())


Number = Annotated[int, BeforeValidator(no_bool)]
PositiveInt = Annotated[Number, Field(ge=1)]
Seconds = Annotated[float, BeforeValidator(no_bool), Field(gt=0)]
Urls = Annotated[tuple[str, ...], BeforeValidator(_split_urls), Field(min_length=1)]
NullIsEmpty = BeforeValidator(lambda value: {} if value is None else value)
JsonObject = Annotated[dict[str, Any], NullIsEmpty]


class Settings(BaseModel):
    """Frozen, and closed: a key that is not a field is an error. Numbers are taken for text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, protected_namespaces=()
    )

    aliases: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def further_problems(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        """What a type cannot say about these settings; paths are relative to them."""
        yield from ()


class ServerReference(Settings):
    """Another server of the run, by kind and name."""

    type: Literal["responses_api_models", "responses_api_agents", "resources_servers"] = Field(
        "responses_api_models", description="Kind of the server that is meant."
    )
    name: str = Field(description="Name of the server that is meant, or policy_model.")


def named_server(value: Any) -> Any:
    """A reference may be written as a name alone."""
    return {"name": value} if isinstance(value, str) else value


class ModelServerSettings(Settings):
    """What every model server understands."""

    aliases: ClassVar = {"model_name": "model"}

    entrypoint: str = Field("app.py", description="Accepted from existing configs; nothing is read from it.")
    num_workers: PositiveInt = Field(1, description="HTTP replicas of this server; the engine stays one.")
    extra_body: JsonObject = Field(
        {}, description="Request fields to add where the caller sent none, such as min_tokens."
    )
    default_headers: Annotated[dict[str, str], NullIsEmpty] = Field(
        {}, repr=False, description="HTTP headers to send to the engine with every request."
    )
    sampling_overrides: JsonObject = Field(
        {}, description="Request fields that beat whatever the caller sent (temperature, top_p, ...)."
    )
    max_request_mib: PositiveInt = Field(64, description="The largest body that a request may have.")
    max_requests_in_flight: PositiveInt = Field(
        8192, description="Requests that a replica takes at once; one more gets a 429 with Retry-After."
    )


class ChatSettings(ModelServerSettings):
    """How Responses requests become Chat Completions, whoever runs the engine."""

    return_token_id_information: bool = Field(
        False,
        description="true for training: token ids and log probabilities on the last item of a turn.",
    )
    uses_reasoning_parser: bool = Field(
        True, description="Make reasoning items of <think> blocks; false leaves the tags in the text."
    )
    chat_template_opens_reasoning: bool = Field(
        False, description="The chat template itself writes <think>: an answer cut off before </think> is reasoning."
    )
    uses_interleaved_reasoning: bool = Field(
        True, description="Send reasoning of earlier turns back to the model; false leaves it out."
    )
    preserve_reasoning_in_assistant_content: bool = Field(
        False, description="Send earlier reasoning back inside the text, in its tags, rather than in a field."
    )
    sequential_reasoning_allowed: bool = Field(
        True, description="Whether the model may be asked again after a turn that held reasoning only."
    )
    replace_developer_role_with_system: bool = Field(
        False, description="Send the role developer as system, for templates that do not know it."
    )
    chat_template_kwargs: JsonObject = Field(
        {}, description="Variables of the chat template, such as enable_thinking: false."
    )
    context_overflow: Literal["error", "incomplete"] = Field(
        "error", description="A prompt longer than the context: error (a 400), or incomplete (a 200)."
    )
    hosted_tools: Literal["drop", "refuse"] = Field(
        "drop", description="Tools that only OpenAI hosts: drop them, and say so, or refuse the request."
    )
    reasoning_tags: Annotated[tuple[str, str], AfterValidator(_tags)] | None = Field(
        None, description="Opening and closing tag of reasoning, where they are not <think> and </think>."
    )
    is_responses_native: bool = Field(False, description="Pass requests to the engine's own /v1/responses.")
    use_completions_api: bool = Field(False, description="For base models: ask /v1/completions.")
    render_chat_template: bool | None = Field(None, description="With it: apply the chat template.")
    tokenizer: str | None = Field(None, description="For that: where the tokenizer is.")
    audio_root: str | None = Field(None, description="Folder below which metadata.audio_path may point.")
    max_input_items: PositiveInt = Field(10_000, description="Items, or messages, that a request may have.")
    max_image_mib: PositiveInt = Field(20, description="The largest image that a request may bring along.")
    connect_timeout_s: Seconds = Field(10.0, description="How long the engine may take to accept a connection.")
    first_token_timeout_s: Seconds = Field(
        3600.0, description="How long a stream may take to begin: the time in the engine's queue is a part of it."
    )
    idle_timeout_s: Seconds = Field(3600.0, description="How long a stream may be silent between two tokens.")
    total_timeout_s: Seconds = Field(14_400.0, description="How long an answer may take in all, streamed or whole.")
    response_store: Annotated[str, BeforeValidator(_store)] = Field(
        "memory", description="Where answers are kept for previous_response_id: memory, none, or an SQLite file."
    )
    response_store_max_mib: PositiveInt = Field(
        256, description="Upper bound of the response store; what was used longest ago goes first."
    )

    @classmethod
    def further_problems(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        if raw.get("is_responses_native") is True:
            for key, value in NOT_NATIVE.items():
                if raw.get(key) is value:
                    yield Problem(key, f"must not be {str(value).lower()} with is_responses_native: true")
            if raw.get("response_store") not in (None, False, "none"):
                yield Problem("response_store", f"does nothing with is_responses_native: true: {_KEPT_THERE}")
        if raw.get("use_completions_api") is not True:
            for key in ("render_chat_template", "tokenizer"):
                if raw.get(key):
                    yield Problem(key, "is for use_completions_api: true, and does nothing without it")


class VLLMModelSettings(ChatSettings):
    """vllm_model: in front of engines that somebody else runs."""

    base_url: Urls = Field(description="URL of the engine, ending in /v1; many as a list or with commas.")
    api_key: SecretStr = Field(SecretStr("EMPTY"), description="What the engine was given as --api-key.")
    model: str = Field(description="The model's name, as the engine serves it.")


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


class OpenAIModelSettings(ModelServerSettings):
    """openai_model: passes the Responses API through."""

    aliases: ClassVar = {
        "openai_base_url": "base_url",
        "openai_api_key": "api_key",
        "openai_model": "model",
        "openai_default_headers": "default_headers",
        "model_name": "model",
    }

    base_url: Urls = Field(
        ("https://api.openai.com/v1",), description="Where the API is; openai_base_url is the same key."
    )
    api_key: SecretStr = Field(description="Its key; openai_api_key is the same key.")
    model: str = Field(description="The model to ask for; openai_model is the same key.")

    @classmethod
    def further_problems(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        for key in ("response_store", "response_store_max_mib"):
            if key in raw:
                yield Problem(key, f"is not for an openai_model: {_KEPT_THERE}")
