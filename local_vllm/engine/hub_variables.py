"""The environment variables by which the Hub is reached: those of the run hold on every node that fetches."""

from __future__ import annotations

from collections.abc import Mapping

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_OF_THE_HUB = (
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "HF_HUB_ETAG_TIMEOUT",
    "HF_HUB_DISABLE_XET",
    "HF_XET_HIGH_PERFORMANCE",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_USER_AGENT_ORIGIN",
)
HUB_VARIABLES = (
    *_OF_THE_HUB,
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *_PROXIES,
    *(name.lower() for name in _PROXIES),
)


def hub_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables of `environment` by which the Hub is reached."""
    return {name: environment[name] for name in HUB_VARIABLES if name in environment}


def for_an_engine(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that an engine gets too. Not the proxies: they would catch its traffic inside the cluster."""
    return {name: variables[name] for name in _OF_THE_HUB if name in variables}
