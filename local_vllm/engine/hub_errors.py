"""What went wrong between us and the Hub, as a line that says what to change; and whether trying again helps.

Errors of huggingface_hub's HTTP client are known by their names: it has had requests, httpx and httpx2.
"""

from __future__ import annotations

import errno
import os
import re
import ssl
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

from huggingface_hub import errors as hub

# Of the standard library's client; those of huggingface_hub's are known by name.
_LOST = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_CERTIFICATE = re.compile(r"certificate|CERTIFICATE|SSLV3|WRONG_VERSION_NUMBER")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_ELSEWHERE = "or set hf_home to another folder"
TOKEN = "HF_TOKEN (or hf_token in env.yaml)"


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of whom, for the message.

    Attributes:
        model, revision: of the repository; the revision is empty for the main branch.
        cache: the folder of the cache.
        endpoint: where the Hub is.
        has_token: whether a token was sent along.
        alike: names of models on the Hub that are like this one.
    """

    model: str
    cache: Path
    endpoint: str
    revision: str = ""
    has_token: bool = False
    alike: tuple[str, ...] = field(default=())


def origin(error: BaseException) -> BaseException:
    """The error behind those that huggingface_hub wraps into `not found in the cache`."""
    while isinstance(error, hub.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_busy(error: BaseException) -> bool:
    """The Hub answered, and not for good: too many requests, or trouble of its own."""
    return status_of(error) in _BUSY


def is_unreachable(error: BaseException) -> bool:
    """No whole answer came: no network, no server, or a connection that broke."""
    error = origin(error)
    if status_of(error) is not None or isinstance(error, hub.OfflineModeIsEnabled):
        return False
    if _CERTIFICATE.search(str(error)) or _is_a(error, "UnsupportedProtocol"):
        return False
    return isinstance(error, _LOST) or _is_a(error, "TransportError", "ConnectionError")


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with, if it did."""
    error = origin(error)
    if isinstance(error, HTTPError):
        return error.code
    return getattr(getattr(error, "response", None), "status_code", None)


def retry_after_s(error: BaseException) -> float:
    """How long the Hub asks to wait; 0 if it does not say."""
    error = origin(error)
    answer = error if isinstance(error, HTTPError) else getattr(error, "response", None)
    value = answer.headers.get("Retry-After", "") if answer is not None else ""
    return float(value) if value.isdigit() else 0.0


def explain(error: BaseException, asked: Asked) -> str:
    """One line: what was asked, what was found, what to change."""
    error = origin(error)
    for said in (_of_the_hub, _of_the_disk, _of_the_network):
        if line := said(error, asked):
            return line
    return f"{asked.model} could not be fetched from {asked.endpoint} into {asked.cache}: {brief(error)}"


def _of_the_hub(error: BaseException, asked: Asked) -> str | None:
    model, page = asked.model, f"{asked.endpoint}/{asked.model}"
    match error:
        case hub.GatedRepoError() if asked.has_token:
            return (
                f"{model} is gated, and the account of this token has no access: accept the terms at {page}, "
                "wait for the approval if there is one, and let a fine-grained token read gated repositories"
            )
        case hub.GatedRepoError():
            return f"{model} is gated: accept its terms at {page}, and set {TOKEN} to a token of that account"
        case hub.DisabledRepoError():
            return f"{model} has been disabled on {asked.endpoint}: choose another model"
        case hub.RevisionNotFoundError():
            wanted = asked.revision or "main"
            return f"{model} has no revision `{wanted}`: {page}/tree/main shows those there are"
        case hub.HFValidationError():
            return f"`{model}` is no folder and no Hub id: write ORGANIZATION/NAME, or the path of a folder"
        case hub.OfflineModeIsEnabled() | hub.LocalEntryNotFoundError():
            return not_cached(asked)
    if status_of(error) == 401 and not isinstance(error, hub.RepositoryNotFoundError):
        return (
            f"{asked.endpoint} refuses the token (401): it is wrong or has expired; set {TOKEN} to a valid "
            f"one, from {asked.endpoint}/settings/tokens, or unset it"
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        return _no_such_model(asked)
    return _answered(error, asked) if status_of(error) is not None else None


def not_cached(asked: Asked) -> str:
    """The line for a model that is not (whole) in the cache while the Hub may not be asked."""
    return (
        f"{asked.model} is not (whole) in {asked.cache}, and HF_HUB_OFFLINE is set: unset it, or fetch the "
        f"model first where there is a network (HF_HOME={asked.cache.parent} hf download {asked.model})"
    )


def _no_such_model(asked: Asked) -> str:
    alike = f"; did you mean {' or '.join(asked.alike)}?" if asked.alike else ""
    hidden = "this token may not see it" if asked.has_token else f"it is private and needs {TOKEN}"
    return f"there is no model {asked.model} at {asked.endpoint}, or {hidden}{alike}"


def _answered(error: BaseException, asked: Asked) -> str:
    status = status_of(error)
    said = f"{asked.endpoint} answered {status} for {asked.model}"
    if status == 429:
        more = (
            "wait some minutes"
            if asked.has_token
            else f"wait some minutes, or set {TOKEN}, which raises the limit"
        )
        return f"{said}, too many requests, again and again: {more}"
    if is_busy(error):
        return (
            f"{said} again and again: it has trouble of its own; try later, or set HF_ENDPOINT to another one"
        )
    detail = getattr(error, "server_message", None) or brief(error)
    hint = f"; see that {TOKEN} is allowed to read it" if status == 403 else ""
    return f"{said}: {one_line(detail)}{hint}"


def _of_the_disk(error: BaseException, asked: Asked) -> str | None:
    number = getattr(error, "errno", None)
    if number in _NO_ROOM:
        what = "the disk is full" if number == errno.ENOSPC else "the quota is used up"
        return f"{what} in {asked.cache} while {asked.model} was fetched: make room there, {_ELSEWHERE}"
    if number in _NOT_ALLOWED:
        place = getattr(error, "filename", None) or asked.cache
        why = os.strerror(number).lower()
        cannot = f"the cache {asked.cache} cannot be written ({place}: {why})"
        return f"{cannot}: change its owner or mode, {_ELSEWHERE}"
    return None


def _of_the_network(error: BaseException, asked: Asked) -> str | None:
    if _CERTIFICATE.search(str(error)):
        return (
            f"the certificate of {asked.endpoint} was not accepted: {brief(error)}; set SSL_CERT_FILE to the "
            "certificates of your network, or HF_ENDPOINT to the right address"
        )
    if _is_a(error, "UnsupportedProtocol", "InvalidURL"):
        return f"HF_ENDPOINT is `{asked.endpoint}`: write it with http:// or https:// and the host"
    if not is_unreachable(error):
        return None
    proxies = [name for name in _PROXIES if os.environ.get(name)]
    via = f" through the proxy of {proxies[0]}" if proxies else ""
    return (
        f"{asked.endpoint} cannot be reached{via} for {asked.model}: {brief(error)}; see to the network, "
        "HF_ENDPOINT and HTTPS_PROXY, or bring the model into the cache and set HF_HUB_OFFLINE=1"
    )


def no_room(asked: Asked, needed: int, free: int) -> str:
    """The line for a disk that is too small, said before anything is fetched."""
    return (
        f"{asked.model} needs {needed / 1e9:.3g} GB more in {asked.cache}, where {free / 1e9:.3g} GB are "
        f"free: make room there, {_ELSEWHERE}"
    )


def no_weights(asked: Asked, load_format: str, found: list[str]) -> str:
    """The line for a repository without a file that vLLM could load."""
    there = f"it has {', '.join(sorted(found)[:3])}" if found else "it has none in any format"
    lacks = f"{asked.model} has no weights that vLLM loads with load_format {load_format}"
    return f"{lacks}: {there}; choose another model or format"


def corrupt(asked: Asked, path: str) -> str:
    """The line for a file that came twice with a content that its checksum does not allow."""
    return (
        f"{path} of {asked.model} came twice from {asked.endpoint} with a content that is not the announced "
        "one: see to the proxy or the mirror in between"
    )


def brief(error: BaseException) -> str:
    """The kind of an error and its first line."""
    text = one_line(str(error))
    return f"{text} ({type(error).__name__})" if text else type(error).__name__


def one_line(text: str) -> str:
    """The first line that says something, without what follows."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]


def _is_a(error: BaseException, *names: str) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)
