"""The files of a collection: the output and what lies beside it, held by one collector at a time.

What stands in the output's lines is left to results.py.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from local_vllm.errors import RunError
from local_vllm.rollouts.disk import writing
from local_vllm.rollouts.identity import Identity

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Holder:
    """The collector that has, or had, the output."""

    pid: int
    host: str


@dataclass(frozen=True, slots=True)
class Held:
    """What `<output>.collection.json` says: who holds the output, and what it is a collection of."""

    holder: Holder
    identity: Identity | None = None


_HELD = TypeAdapter(Held)


@dataclass(frozen=True, slots=True)
class Paths:
    """Everything that a collection writes."""

    output: Path

    @property
    def failures(self) -> Path:
        return self._beside("failures.jsonl")

    @property
    def summary(self) -> Path:
        return self._beside("summary.json")

    @property
    def collection(self) -> Path:
        return self._beside("collection.json")

    def _beside(self, ending: str) -> Path:
        return self.output.with_name(f"{self.output.name}.{ending}")

    def aside(self) -> Paths:
        """Where an earlier collection goes: the same name with the time in it, and free."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        names = (f"{self.output.stem}.{stamp}{more}{self.output.suffix}" for more in ("", *map(_numbered, range(2, 99))))
        return next(paths for name in names if not (paths := Paths(self.output.with_name(name))).output.exists())


def _numbered(number: int) -> str:
    return f"-{number}"


class Collection:
    """The files, locked for this process. The kernel takes the lock away with the process, however that ends."""

    def __init__(self, paths: Paths, fd: int) -> None:
        self.paths = paths
        self._fd = fd
        self._said = _read(fd)
        self._write(Held(_this_process(), self.identity))

    @property
    def identity(self) -> Identity | None:
        """What the output is a collection of; None when that is not known."""
        return self._said.identity if self._said else None

    def keep_identity(self, identity: Identity) -> None:
        self._write(Held(_this_process(), identity))

    def move_aside(self) -> Paths | None:
        """Move what an earlier collection left out of the way; where to, or None when there was no output.

        What it was a collection of goes first: an output without that could not be gone on with.
        """
        if not self.has_output:
            return None
        aside = self.paths.aside()
        with writing(aside.output):
            if self._said is not None:
                aside.collection.write_bytes(_HELD.dump_json(self._said, indent=1))
            for name in ("output", "failures", "summary"):
                with suppress(FileNotFoundError):
                    getattr(self.paths, name).rename(getattr(aside, name))
        return aside

    def remove_stale(self) -> None:
        """Remove what an earlier session said of its end."""
        for stale in (self.paths.failures, self.paths.summary):
            with writing(stale):
                stale.unlink(missing_ok=True)

    @property
    def has_output(self) -> bool:
        """Whether there is an output with anything in it."""
        try:
            return self.paths.output.stat().st_size > 0
        except FileNotFoundError:
            return False

    def _write(self, held: Held) -> None:
        """In place: the lock is on this very file. It is small enough to arrive whole, and blanks cover what is left of
        a longer one, so that it is JSON at any moment.
        """
        self._said = held
        content = _HELD.dump_json(held, indent=1)
        with writing(self.paths.collection):
            os.pwrite(self._fd, content.ljust(os.fstat(self._fd).st_size), 0)
            os.ftruncate(self._fd, len(content))


@contextmanager
def held(paths: Paths) -> Iterator[Collection]:
    """Hold the output; folders that are missing are made.

    Raises:
        RunError: another collector holds it, or it cannot be written.
    """
    try:
        paths.output.parent.mkdir(parents=True, exist_ok=True)
        fd = _locked(paths)
    except OSError as error:
        raise RunError(f"output_jsonl_fpath: {paths.output} cannot be written: {error.strerror}") from error
    try:
        collection = Collection(paths, fd)
        yield collection
    finally:
        if not paths.output.exists() and os.fstat(fd).st_nlink:
            with suppress(OSError):
                paths.collection.unlink(missing_ok=True)
        os.close(fd)


def _locked(paths: Paths) -> int:
    while True:
        fd = os.open(paths.collection, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            said = _read(fd)
            os.close(fd)
            raise RunError(_taken(paths, said)) from error
        # Its last holder may have removed it between the two calls.
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)


def _taken(paths: Paths, said: Held | None) -> str:
    who = f"pid {said.holder.pid} on {said.holder.host}" if said else "its pid is not known yet"
    return (
        f"{paths.output} is being written by another ng_collect_rollouts ({who}): "
        "wait for it, end it, or give another output_jsonl_fpath"
    )


def _read(fd: int) -> Held | None:
    try:
        return _HELD.validate_json(os.pread(fd, _BLOCK, 0))
    except ValidationError:
        return None


def _this_process() -> Holder:
    return Holder(os.getpid(), socket.gethostname())


def cut_torn_line(path: Path) -> int:
    """Cut what stands after the last line break: a line that was being written when its writer was killed.

    Returns how many bytes that was. Raises RunError.
    """
    with writing(path), path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        whole = _end_of_last_line(file.fileno(), size)
        file.truncate(whole)
    return size - whole


def _end_of_last_line(fd: int, size: int) -> int:
    end = size
    while end:
        begin = max(0, end - _BLOCK)
        found = os.pread(fd, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


class Lines:
    """A file to which whole lines are added, each with the system as soon as it is added."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._path = path
        with writing(path):
            self._fd = os.open(path, flags, 0o644)

    def add(self, line: bytes) -> None:
        """Raises RunError when it cannot be written; the file ends with a whole line then too."""
        written = 0
        with writing(self._path):
            try:
                while written < len(line):
                    written += os.write(self._fd, line[written:] if written else line)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise

    def close(self) -> None:
        with suppress(OSError):
            os.fsync(self._fd)
        os.close(self._fd)
