"""Who may use a server: an ASGI frame that lets a request in when it carries a key, as OpenAI's API asks for it.

It stands around each application inside its replica, so that it holds at the replica's own port too. `/health` is open.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from local_vllm.config.client_keys import ClientKeys, keys_in
from local_vllm.protocol.errors import ErrorFields, error_body
from local_vllm.serving.asgi import Application, Send, path_below_root, send_whole
from local_vllm.serving.replies import JSON, Reply, logger
from local_vllm.serving.requests import Receive, Scope

# A key that was taken out of its file opens nothing any more after this time.
LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Access:
    """`keys` are those of clients; `own` opens the servers of a run to its other servers and to the commands of its owner."""

    keys: ClientKeys = ClientKeys()
    own: str = field(default="", repr=False)

    def around(self, application: Application) -> Application:
        """The application behind its keys, or itself where none are asked for."""
        if not self.keys.are_asked_for:
            return application
        return Guarded(application, KeyRing(self.keys, self.own))


class KeyRing:
    """The keys that are valid now. Compared are digests, all of them each time, in constant time."""

    def __init__(self, keys: ClientKeys, own: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._stated = [_digest(key.encode()) for key in (*keys.stated, own) if key]
        self._file = keys.file
        self._clock = clock
        self._in_file: list[bytes] = []
        self._seen: object = None
        self._look_again_at = 0.0

    def opens(self, key: bytes) -> bool:
        if self._file is not None and self._clock() >= self._look_again_at:
            self._look(self._file)
        given = _digest(key)
        is_known = False
        for known in (*self._stated, *self._in_file):
            is_known |= hmac.compare_digest(given, known)
        return is_known

    def _look(self, file: Path) -> None:
        """Read the file again if it is another one; a file that cannot be read has no keys."""
        self._look_again_at = self._clock() + LOOK_AGAIN_S
        try:
            now = file.stat()
            state: object = (now.st_ino, now.st_size, now.st_mtime_ns)
            if state != self._seen:
                self._in_file = [_digest(key.encode()) for key in keys_in(file.read_text())]
        except (OSError, UnicodeDecodeError) as error:
            state = str(error)
            self._in_file = []
            if state != self._seen:
                logger.error("The keys in %s open nothing now: %s", file, error)
        self._seen = state


class Guarded:
    """An application behind a key ring."""

    def __init__(self, application: Application, keys: KeyRing) -> None:
        self._application = application
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(scope):
            key = _bearer(scope)
            if key is None or not self._keys.opens(key):
                return await send_whole(refusal(key), send, scope)
        await self._application(scope, receive, send)


def is_open(scope: Scope) -> bool:
    """Whether anybody may ask this: the health of a server, or of one below a gateway."""
    parts = path_below_root(scope).split("/")
    return scope["method"] in ("GET", "HEAD") and len(parts) <= 3 and parts[-1] == "health"


def refusal(key: bytes | None) -> Reply:
    """OpenAI's answer to a request without a key, or with one that is not valid."""
    if key is None:
        message = "You didn't provide an API key: send it as a bearer token, 'Authorization: Bearer <key>'."
    else:
        message = "Incorrect API key provided."
    body = error_body(ErrorFields(message, "invalid_request_error", None, "invalid_api_key"))
    return Reply(401, body, JSON + ((b"www-authenticate", b"Bearer"),))


def _bearer(scope: Scope) -> bytes | None:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    return key.strip() if scheme.lower() == b"bearer" else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
