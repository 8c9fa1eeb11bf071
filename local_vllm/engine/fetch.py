"""Fetches a snapshot into the Hub's cache on one machine, and tells how far it is.

Files come by resumed_file.py; huggingface_hub then makes the snapshot of them, and fetches what only it can.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.utils import disable_progress_bars

from local_vllm.engine import byte_stream, hub_errors
from local_vllm.engine.hub import HubAccess, Patience, patiently
from local_vllm.engine.resumed_file import Corrupt, ResumedFile, partial_path, size_of
from local_vllm.engine.snapshot import HubFile, Snapshot, repository_folder
from local_vllm.engine.spec import Download
from local_vllm.errors import EngineStartError

FILES_AT_A_TIME = 8
MEASURE_EVERY_S = 0.5
SPEED_OVER_S = 10.0
# A thread that waits for the network ends at its read timeout.
_LEAVE_WITHIN_S = 15.0
# The Hub serves larger files by its own protocol (Xet) only, which huggingface_hub speaks.
_LARGEST_OVER_HTTP = 50_000_000_000


class _GivenUp(Exception):
    """Another file has failed, or nobody wants the snapshot any more."""


class Fetch:
    """One snapshot on its way into one cache. `progress` does it and tells; leaving that early ends it."""

    def __init__(
        self, snapshot: Snapshot, cache: Path, access: HubAccess, patience: Patience = Patience()
    ) -> None:
        self.snapshot = snapshot
        self.cache = cache
        self.access = access
        self.patience = patience
        self._asked = access.asked(snapshot.wanted, cache)
        self._repository = repository_folder(cache, snapshot.wanted.model)
        self._blobs = self._repository / "blobs"
        self._lock = cache / ".locks" / self._repository.name / "weights.lock"
        self._given_up = threading.Event()
        self._trouble: BaseException | None = None

    def progress(self) -> Iterator[Download]:
        """Fetch what is missing, telling how far it is twice a second; the snapshot is whole at the end.

        Raises:
            EngineStartError: it cannot be had; the message says why and what to change.
        """
        work: Future[None] = Future()
        thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        thread.start()
        try:
            yield from self._told_until(work)
            self._raise_of(work)
        finally:
            self._given_up.set()
            thread.join(_LEAVE_WITHIN_S)
        yield self._download(0.0)

    def _told_until(self, work: Future[None]) -> Iterator[Download]:
        measured: deque[tuple[float, int]] = deque()
        moved_at, moved_to = time.monotonic(), -1
        while not work.done():
            now, download = time.monotonic(), self._download(0.0)
            if download.bytes_done != moved_to:
                moved_at, moved_to = now, download.bytes_done
            elif now - moved_at > self.patience.no_progress_s:
                raise EngineStartError(self._stalled())
            yield replace(download, bytes_per_s=_speed(measured, now, download.bytes_done))
            wait([work], timeout=MEASURE_EVERY_S)

    def _raise_of(self, work: Future[None]) -> None:
        match work.exception():
            case None:
                return
            case EngineStartError() as error:
                raise error
            case error:
                raise EngineStartError(hub_errors.explain(error, self._asked)) from error

    def _run(self, work: Future[None]) -> None:
        try:
            if self.snapshot.missing(self.cache):
                self._fetch()
            self._write_ref()
        except BaseException as error:  # noqa: BLE001 (it is raised where the result is asked for)
            work.set_exception(error)
        else:
            work.set_result(None)

    def _fetch(self) -> None:
        disable_progress_bars()
        self._blobs.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if missing := self.snapshot.missing(self.cache):
                self._check_room(missing)
                if self._etags_hold(missing):
                    self._stream([file for file in missing if _is_streamed(file)])
                patient = replace(self.patience, unreachable_s=self.patience.busy_s)
                patiently(self._make_snapshot, patient)

    def _make_snapshot(self) -> None:
        """Have huggingface_hub link the blobs that are there, and fetch those that are not."""
        snapshot_download(
            self.snapshot.wanted.model,
            revision=self.snapshot.commit,
            cache_dir=self.cache,
            token=self.access.token,
            endpoint=self.access.endpoint,
            allow_patterns=[glob.escape(file.path) for file in self.snapshot.missing(self.cache)],
            max_workers=FILES_AT_A_TIME,
        )
        if missing := self.snapshot.missing(self.cache):
            # It is content with a part of a snapshot where the Hub cannot be reached.
            raise ConnectionError(f"{len(missing)} files did not come, {missing[0].path} among them")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time for a repository in a cache. Those that wait see the progress on the disk."""
        with contextlib.ExitStack() as stack:
            # Without a lock nothing breaks (ResumedFile): a disk without, or another's lock, is no error.
            with contextlib.suppress(PermissionError):
                self._lock.parent.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(open(self._lock, "a"))
                while self.snapshot.missing(self.cache) and not _try_lock(lock.fileno()):
                    self._pause(MEASURE_EVERY_S)
            yield

    def _check_room(self, missing: Sequence[HubFile]) -> None:
        needed = sum(file.size - self._bytes_of(file) for file in missing)
        free = shutil.disk_usage(self._blobs).free
        if needed > free:
            raise EngineStartError(hub_errors.no_room(self._asked, needed, free))

    def _etags_hold(self, missing: Sequence[HubFile]) -> bool:
        """Whether this Hub names contents as its listing does. Some mirrors do not: huggingface_hub copes."""
        largest = max(missing, key=lambda file: file.size)
        found = patiently(
            lambda: get_hf_file_metadata(
                self._url(largest), token=self.access.token, endpoint=self.access.endpoint
            ),
            self.patience,
        )
        return found.etag == largest.etag

    def _stream(self, files: Sequence[HubFile]) -> None:
        with ThreadPoolExecutor(FILES_AT_A_TIME) as pool:
            streams = [
                pool.submit(self._stream_one, file) for file in sorted(files, key=lambda file: -file.size)
            ]
            done, _ = wait(streams, return_when=FIRST_EXCEPTION)
            if failed := [error for stream in done if (error := stream.exception())]:
                self._given_up.set()
                pool.shutdown(cancel_futures=True)
                raise failed[0]

    def _stream_one(self, file: HubFile) -> None:
        stream = ResumedFile(
            file, self._url(file), self._blobs, self.access.token, pause=self._pause, on_trouble=self._note
        )
        try:
            stream.fetch(self.patience)
        except Corrupt:
            raise EngineStartError(hub_errors.corrupt(self._asked, file.path)) from None

    def _url(self, file: HubFile) -> str:
        return hf_hub_url(
            self.snapshot.wanted.model,
            file.path,
            revision=self.snapshot.commit,
            endpoint=self.access.endpoint,
        )

    def _pause(self, seconds: float) -> None:
        if self._given_up.wait(seconds) if seconds else self._given_up.is_set():
            raise _GivenUp

    def _note(self, trouble: BaseException) -> None:
        self._trouble = trouble

    def _download(self, speed: float) -> Download:
        """What is on the disk, whoever has brought it there."""
        files = self.snapshot.files
        missing = len(self.snapshot.missing(self.cache))
        size = sum(self._bytes_of(file) for file in files)
        return Download(len(files) - missing, len(files), size, sum(file.size for file in files), speed)

    def _bytes_of(self, file: HubFile) -> int:
        if (self.snapshot.folder(self.cache) / file.path).is_file():
            return file.size
        if not file.etag:
            return 0
        if (self._blobs / file.etag).exists():
            return file.size
        # What huggingface_hub itself fetches has a name of its own, and may have holes.
        theirs = (_allocated(path) for path in self._blobs.glob(f"{file.etag}.*.incomplete"))
        return min(file.size, max(size_of(partial_path(self._blobs, file)), *theirs, 0))

    def _write_ref(self) -> None:
        """Note the commit under the name that was asked for, so that it is found without the Hub."""
        revision = self.snapshot.wanted.revision or "main"
        ref = self._repository / "refs" / revision
        # A cache that is whole and cannot be written is no error.
        with contextlib.suppress(OSError):
            if revision != self.snapshot.commit and not (
                ref.is_file() and ref.read_text() == self.snapshot.commit
            ):
                ref.parent.mkdir(parents=True, exist_ok=True)
                new = ref.with_name(f"{ref.name}.{os.getpid()}.new")
                new.write_text(self.snapshot.commit)
                new.replace(ref)

    def _stalled(self) -> str:
        waited_s = self.patience.no_progress_s
        waited = f"not a byte of {self._asked.model} has come into {self.cache} for {waited_s:.0f} s"
        if self._trouble is not None:
            return f"{waited}: {hub_errors.explain(self._trouble, self._asked)}"
        return f"{waited}: see to the network, or to another process that holds {self._lock}"


def _is_streamed(file: HubFile) -> bool:
    # Whoever asks for Xet by this variable gives up that a file is resumed in the middle.
    wants_xet = constants.HF_XET_HIGH_PERFORMANCE
    return bool(file.etag) and file.size <= _LARGEST_OVER_HTTP and not wants_xet and byte_stream.is_possible()


def _try_lock(descriptor: int) -> bool:
    """Whether nobody else holds the lock, as far as this file system knows."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _speed(measured: deque[tuple[float, int]], now: float, size: int) -> float:
    """Bytes a second over the last seconds; `measured` keeps what is needed for it."""
    measured.append((now, size))
    while now - measured[0][0] > SPEED_OVER_S:
        measured.popleft()
    begun, first = measured[0]
    return (size - first) / (now - begun) if now > begun else 0.0


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
