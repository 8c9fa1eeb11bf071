"""The keys of clients: those that a run asks for, and the one that our own commands send.

They come from the configuration, from the environment, or from a file. Checking a request is left to `serving`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local_vllm.config.schema import GlobalSettings
from local_vllm.errors import Problem

SERVER_VARIABLE = "LOCAL_VLLM_API_KEYS"
CLIENT_VARIABLE = "LOCAL_VLLM_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """Which keys open the servers of a run: `stated` ones, and those that stand in `file` at any moment."""

    stated: tuple[str, ...] = field(default=(), repr=False)
    file: Path | None = None

    @property
    def are_asked_for(self) -> bool:
        return bool(self.stated) or self.file is not None


def client_keys(settings: GlobalSettings, environment: Mapping[str, str] = os.environ) -> ClientKeys:
    """The keys that a run with these settings asks its clients for."""
    stated = [key.get_secret_value() for key in settings.api_keys or ()]
    stated += environment.get(SERVER_VARIABLE, "").replace(",", " ").split()
    file = settings.api_keys_file
    return ClientKeys(tuple(dict.fromkeys(stated)), Path(file).expanduser().absolute() if file else None)


def own_client_key(settings: GlobalSettings, environment: Mapping[str, str] = os.environ) -> str | None:
    """What our commands send as clients: the key that they were told of, else one that the configuration asks for."""
    if told := environment.get(CLIENT_VARIABLE):
        return told
    if settings.client_api_key is not None:
        return settings.client_api_key.get_secret_value()
    return next(iter(client_keys(settings, environment).stated), None)


def keys_in(text: str) -> tuple[str, ...]:
    """One key a line; empty lines and those that begin with # are none."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def access_problems(
    settings: GlobalSettings, host: str, environment: Mapping[str, str] = os.environ
) -> Iterator[Problem]:
    """What is wrong with who may use servers that listen on `host`."""
    keys = client_keys(settings, environment)
    if keys.file is not None:
        yield from _file_problems(keys.file)
    if host not in LOOPBACK and not keys.are_asked_for and not settings.allow_unauthenticated:
        yield Problem(
            "api_keys",
            f"must be given, since the servers listen on {host}, where others can reach them: write "
            f"++api_keys_file=<path> (one key a line), api_keys in env.yaml or {SERVER_VARIABLE}; "
            "or ++allow_unauthenticated=true, if everybody there may use them",
        )


def _file_problems(file: Path) -> Iterator[Problem]:
    try:
        found = keys_in(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        yield Problem("api_keys_file", f"{file} cannot be read: {getattr(error, 'strerror', None) or error}")
        return
    if not found:
        yield Problem("api_keys_file", f"{file} has no key in it: write one a line")
