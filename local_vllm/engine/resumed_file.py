"""Fetches one file of the Hub to a blob of its cache, going on where an interrupted attempt has ended.

Bytes go to `<etag>.incomplete` beside the blob, and stay there when this process dies. huggingface_hub itself
begins a file anew after an interruption, which costs gigabytes; here it finds the finished blob.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers

from local_vllm.engine import hub_errors
from local_vllm.engine.byte_stream import byte_stream
from local_vllm.engine.hub import Patience
from local_vllm.engine.snapshot import HubFile

_HASH_BLOCK_BYTES = 1 << 20


class Corrupt(Exception):
    """The bytes are not those that the etag names."""


class ResumedFile:
    """One file on its way.

    Args:
        blobs: the folder of the blobs; the file becomes the one named by its etag.
        pause: waits for so many seconds; raises when nobody wants the file any more.
        on_trouble: called with each error after which it is tried again.
    """

    def __init__(
        self,
        file: HubFile,
        url: str,
        blobs: Path,
        token: str | None,
        pause: Callable[[float], None],
        on_trouble: Callable[[BaseException], None],
    ) -> None:
        self.file = file
        self.blob = blobs / file.etag
        self.partial = partial_path(blobs, file)
        self._url = url
        self._token = token
        self._pause = pause
        self._on_trouble = on_trouble

    def fetch(self, patience: Patience) -> None:
        """Fetch what is missing, however often the connection is lost: giving up is the caller's part.

        Raises:
            Corrupt: what came, twice, has not the content that its etag names.
        """
        pauses, corrupt = iter(patience.lost_s), False
        while not self.blob.exists():
            before = size_of(self.partial)
            try:
                self._attempt(before, check=before > 0 or corrupt)
            except Corrupt:
                self.partial.unlink(missing_ok=True)
                if corrupt:
                    raise
                corrupt = True
            except Exception as error:
                if not (hub_errors.is_busy(error) or hub_errors.is_unreachable(error)):
                    raise
                self._on_trouble(error)
                pauses = iter(patience.lost_s) if size_of(self.partial) > before else pauses
                pause = next(pauses, patience.lost_s[-1])
                self._pause(max(pause, min(hub_errors.retry_after_s(error), patience.lost_s[-1])))

    def _attempt(self, begin: int, check: bool) -> None:
        end = self._append(begin)
        if end < self.file.size:
            raise ConnectionError(f"the answer ended after {end:,} of {self.file.size:,} bytes")
        # All of it is read again where pieces were put together, by several processes or after a crash.
        if end > self.file.size or (check and not _is_content(self.partial, self.file.etag)):
            raise Corrupt
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.partial, self.blob)

    def _append(self, begin: int) -> int:
        """Write what is missing behind what is there; returns the size after it."""
        # Not in append mode: another process that writes this file writes the same bytes to the same place.
        with open(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as out:
            return begin if begin >= self.file.size else self._write_from(begin, out)

    def _write_from(self, begin: int, out: BinaryIO) -> int:
        headers = build_hf_headers(token=self._token)
        with byte_stream(self._url, headers, begin, constants.HF_HUB_DOWNLOAD_TIMEOUT) as stream:
            at = stream.begins_at
            out.seek(at)
            for piece in stream.pieces():
                self._pause(0)
                at += len(piece)
                if at > self.file.size:
                    break
                _write(out, piece)
        return at


def partial_path(blobs: Path, file: HubFile) -> Path:
    """Where the bytes of an unfinished file are."""
    return blobs / f"{file.etag}.incomplete"


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _write(out: BinaryIO, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[out.write(view) :]


def _is_content(path: Path, etag: str) -> bool:
    """Whether the file has the content that its etag names: a SHA-256, or git's SHA-1 of a blob."""
    if len(etag) == 64:
        digest = hashlib.sha256()
    elif len(etag) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True
    with open(path, "rb") as content:
        while block := content.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest() == etag
