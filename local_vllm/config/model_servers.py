"""What a model server can be told, whoever runs its engine: a pydantic model for each implementation.

The field descriptions are the reference that `ng_run --help` prints. Obeying the settings is left to others, and
servers whose engine is ours are own_engines.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from local_vllm.config.fields import JsonObject, NullIsEmpty, PositiveInt, Seconds, Settings, Urls
from local_vllm.errors import Problem

# What an engine's own Responses API cannot do for us.
NOT_NATIVE = {
    "return_token_id_information": True,
    "sequential_reasoning_allowed": False,
    "use_completions_api": True,
}
_KEPT_THERE = "who is asked keeps the responses; leave it out"
# How the name of a file is told from a misspelled word, where it has no slash.
STORE_FILES = (".db", ".sqlite", ".sqlite3")


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
