"""What the settings of servers are made of: numbers, addresses, references to other servers, and their base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from local_vllm.errors import Problem


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
