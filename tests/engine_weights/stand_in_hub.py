"""A server that speaks the Hub's protocol, with faults to order, and counts what it serves."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_BYTES = 1 << 20
PIECE_BYTES = 1 << 16


@dataclass
class Repository:
    """A model on the Hub. Files of a mebibyte and more are large ones, which the Hub keeps elsewhere.

    Attributes:
        gated: only these tokens may read its files; its listing is open.
        private: only these tokens see that it is there.
    """

    files: dict[str, bytes]
    commit: str = "c0ffee" + "0" * 34
    gated: frozenset[str] | None = None
    private: frozenset[str] | None = None

    def listing(self, name: str) -> dict:
        content = self.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {
            "rfilename": name,
            "path": name,
            "type": "file",
            "size": len(content),
            "blobId": blob,
            "oid": blob,
        }
        if len(content) >= LARGE_BYTES:
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def etag(self, name: str) -> str:
        entry = self.listing(name)
        return entry["lfs"]["sha256"] if "lfs" in entry else entry["oid"]


@dataclass
class Faults:
    """What the Hub does wrong now.

    Attributes:
        answers: statuses to answer with, the next request first; then all is well.
        retry_after: sent with them.
        cuts: after so many bytes of a file the connection is cut, once for each number.
        bytes_per_s: how fast a file is sent; 0 for as fast as it goes.
        stalls: nothing comes of a file after the headers.
        ignores_ranges: a part is asked for, and the whole file is sent.
        strange_etags: contents have other names than in the listing, as on some mirrors.
    """

    answers: list[int] = field(default_factory=list)
    retry_after: str = ""
    cuts: list[int] = field(default_factory=list)
    bytes_per_s: int = 0
    stalls: bool = False
    ignores_ranges: bool = False
    strange_etags: bool = False


class StandInHub:
    """The server. `url` is its address; `elsewhere` is another name of it, where large files lie."""

    def __init__(
        self, repositories: dict[str, Repository], tokens: frozenset[str] = frozenset({"hf_good"})
    ) -> None:
        self.repositories = repositories
        self.tokens = tokens
        self.faults = Faults()
        self.renamed: dict[str, str] = {}
        self.requests: list[str] = []
        self.bytes_of: Counter[str] = Counter()
        self.authorized_elsewhere = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def elsewhere(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def bytes_served(self) -> int:
        return self.bytes_of.total()

    def start(self) -> None:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = _Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Be gone, with every connection."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with self._lock:
            for connection in self._open:
                _cut(connection)

    def forget(self) -> None:
        """Count from nothing again."""
        self.requests.clear()
        self.bytes_of.clear()

    def note(self, request: str) -> None:
        with self._lock:
            self.requests.append(request)

    def sent(self, name: str, size: int) -> None:
        with self._lock:
            self.bytes_of[name] += size

    def next_of(self, orders: list[int]) -> int | None:
        with self._lock:
            return orders.pop(0) if orders else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def setup(self) -> None:
        super().setup()
        with self.hub._lock:
            self.hub._open.add(self.connection)

    def finish(self) -> None:
        with self.hub._lock:
            self.hub._open.discard(self.connection)
        try:
            super().finish()
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.hub.note(f"{self.command} {unquote(url.path)}")
        if status := self.hub.next_of(self.hub.faults.answers):
            more = {"Retry-After": self.hub.faults.retry_after} if self.hub.faults.retry_after else {}
            self._refuse(status, "", "not now", more)
            return
        parts = unquote(url.path).strip("/").split("/")
        for former, name in self.hub.renamed.items():
            if f"/{former}/" in f"{url.path}/":
                self._reply(307, {"Location": self.path.replace(former, name)}, b"")
                return
        try:
            if parts[:2] == ["api", "models"]:
                self._api(parts[2:], parse_qs(url.query))
            elif parts[0] == "large":
                self._large("/".join(parts[1:3]), "/".join(parts[3:]))
            elif "resolve" in parts:
                at = parts.index("resolve")
                self._resolve("/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
            else:
                self._refuse(404, "", "no such page")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _repository(self, model: str) -> Repository | None:
        """The repository, or None when it has been refused."""
        token = self._token()
        if token and token not in self.hub.tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        repository = self.hub.repositories.get(model)
        if repository is None or (repository.private is not None and token not in repository.private):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def _api(self, parts: list[str], query: dict[str, list[str]]) -> None:
        if not parts:
            self._list(query)
            return
        model, rest = "/".join(parts[:2]), parts[2:]
        if (repository := self._repository(model)) is None:
            return
        if rest and not self._is_revision(repository, rest[1]):
            return
        entries = [repository.listing(name) for name in repository.files]
        if rest[:1] == ["tree"]:
            self._json(entries)
        else:
            self._json(
                {"id": model, "modelId": model, "sha": repository.commit, "siblings": entries, "tags": []}
            )

    def _list(self, query: dict[str, list[str]]) -> None:
        author, search = query.get("author", [""])[0], query.get("search", [""])[0]
        names = [
            name
            for name, repository in self.hub.repositories.items()
            if repository.private is None and name.startswith(author and f"{author}/") and search in name
        ]
        self._json([{"id": name} for name in names])

    def _is_revision(self, repository: Repository, revision: str) -> bool:
        if revision in ("main", repository.commit):
            return True
        self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return False

    def _resolve(self, model: str, revision: str, name: str) -> None:
        if (repository := self._repository(model)) is None or not self._is_revision(repository, revision):
            return
        if repository.gated is not None and self._token() not in repository.gated:
            self._refuse(
                403 if self._token() else 401, "GatedRepo", f"Access to model {model} is restricted."
            )
            return
        if name not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        etag = repository.etag(name) + ("-strange" if self.hub.faults.strange_etags else "")
        commit = {"X-Repo-Commit": repository.commit}
        if len(repository.files[name]) < LARGE_BYTES:
            self._file(name, repository.files[name], {"ETag": f'"{etag}"', **commit})
            return
        size = len(repository.files[name])
        linked = {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{etag}"', **commit}
        self._reply(302, {"Location": f"{self.hub.elsewhere}/large/{model}/{name}", **linked}, b"")

    def _large(self, model: str, name: str) -> None:
        if self._token():
            self.hub.authorized_elsewhere = True
        self._file(name, self.hub.repositories[model].files[name], {})

    def _file(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        begin, asked = 0, self.headers.get("Range")
        if asked and not self.hub.faults.ignores_ranges:
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
            headers = headers | {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        self._reply(206 if begin else 200, headers | {"Accept-Ranges": "bytes"}, content[begin:], name)

    def _json(self, value: object) -> None:
        self._reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _refuse(self, status: int, code: str, message: str, more: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(more or {})}
        self._reply(status, headers, json.dumps({"error": message}).encode())

    def _reply(self, status: int, headers: dict[str, str], body: bytes, name: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if not name:
            self.wfile.write(body)
            return
        self._send(name, body)

    def _send(self, name: str, body: bytes) -> None:
        faults = self.hub.faults
        cut = self.hub.next_of(faults.cuts) if len(body) >= LARGE_BYTES else None
        body = body if cut is None else body[:cut]
        for begin in range(0, len(body), PIECE_BYTES):
            while faults.stalls:
                time.sleep(0.05)
            piece = body[begin : begin + PIECE_BYTES]
            self.wfile.write(piece)
            self.hub.sent(name, len(piece))
            if faults.bytes_per_s:
                time.sleep(len(piece) / faults.bytes_per_s)
        if cut is not None:
            _cut(self.connection)
            self.close_connection = True


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a model, as a repository has them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
