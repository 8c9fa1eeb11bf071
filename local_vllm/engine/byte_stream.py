"""The bytes of a file over HTTP, from any offset on, for a fifth of what huggingface_hub takes of a processor.

Proxies and certificates are those of the environment. What the answer means is left to the caller.
"""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse
from typing import IO
from urllib.parse import urlsplit

_TOKEN = "Authorization"
_AT_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ByteStream:
    """An answer that has begun. `begins_at` is the offset of its first byte: 0 if no parts are sent."""

    begins_at: int
    answer: HTTPResponse

    def pieces(self) -> Iterator[bytes]:
        """What comes, as it comes."""
        while piece := self.answer.read1(_AT_MOST_BYTES):
            yield piece


@contextmanager
def byte_stream(url: str, headers: Mapping[str, str], begin: int, timeout_s: float) -> Iterator[ByteStream]:
    """Ask for the bytes from `begin` on. A token goes to the host of `url` only, not to where that sends us.

    Raises:
        urllib.error.HTTPError: the answer is no file.
        OSError, http.client.HTTPException: no whole answer came; `timeout_s` passed without a byte.
    """
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    for name, value in headers.items():
        add = request.add_unredirected_header if name.title() == _TOKEN else request.add_header
        add(name.title(), value)
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    with _opener().open(request, timeout=timeout_s) as answer:
        yield ByteStream(begin if answer.status == 206 else 0, answer)


def is_possible() -> bool:
    """Whether the proxies, if any, are such that are spoken here."""
    return not any(proxy.startswith("socks") for proxy in urllib.request.getproxies().values())


class _SameHostSeesToken(urllib.request.HTTPRedirectHandler):
    """A repository that was renamed is found by a redirect on the same host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get(_TOKEN)
        if following is not None and token and urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]:
            following.add_unredirected_header(_TOKEN, token)
        return following


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    proxies = urllib.request.getproxies()
    for scheme in ("http", "https"):
        if "all" in proxies:
            proxies.setdefault(scheme, proxies["all"])
    return urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPSHandler(context=_certificates()),
        _SameHostSeesToken(),
    )


def _certificates() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        # Some Pythons look for the system's certificates where there are none.
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context
