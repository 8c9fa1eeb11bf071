"""A process, everything below it, and the shared memory it maps: found and ended through /proc (Linux).

Standard library only: the guard program starts in milliseconds and must work when everything else is broken.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")
STOPPED = "T"
"""The state of a process that a signal has stopped; `t` is a debugger's doing."""

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Make orphaned descendants children of this process instead of init, so that none of them is lost."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent_pid: int, sig: int = signal.SIGKILL) -> None:
    """Have the kernel send `sig` to this process when the thread that forked it ends.

    Call between fork and exec. A parent that died before the call is noticed by comparing `parent_pid`.
    """
    _prctl(PR_SET_PDEATHSIG, sig)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), sig)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def descendants(root: int) -> list[int]:
    """Every living process below `root` (zombies left out), parents before children."""
    children: dict[int, list[int]] = {}
    for pid, parent, state in _processes():
        if state != "Z":
            children.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _processes() -> Iterator[tuple[int, int, str]]:
    for pid in _pids():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = _stat(pid)
            yield pid, int(fields[1]), fields[0]


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot: with the pid it names one process for good. None if it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = _stat(pid)
        return None if fields[0] == "Z" else int(fields[19])
    return None


def state(pid: int) -> str:
    """The state letter of /proc; empty when `pid` is gone."""
    with contextlib.suppress(OSError, IndexError):
        return _stat(pid)[0]
    return ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc from the state on: the command name before it may hold blanks and brackets of its own."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def shared_memory_names() -> set[str]:
    """The names of all segments in /dev/shm."""
    try:
        return set(os.listdir(SHARED_MEMORY))
    except OSError:
        return set()


def mapped_shared_memory(pids: Iterable[int]) -> set[str]:
    """The segments in /dev/shm that one of `pids` maps or holds open."""
    prefix = f"{SHARED_MEMORY}/"
    names: set[str] = set()
    for pid in pids:
        names |= {path[len(prefix) :].split(" ")[0] for path in _mapped_paths(pid) if path.startswith(prefix)}
    return names


def _mapped_paths(pid: int) -> set[str]:
    paths: set[str] = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as maps:
        paths = {line[73:].rstrip("\n") for line in maps if len(line) > 73}
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                paths.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return paths


def remove_shared_memory(names: Collection[str]) -> list[str]:
    """Unlink those of `names` that are still there and that no living process maps; say which."""
    left = set(names) & shared_memory_names()
    removed = []
    for name in sorted(left - mapped_shared_memory(_pids()) if left else ()):
        with contextlib.suppress(OSError):
            (SHARED_MEMORY / name).unlink()
            removed.append(name)
    return removed


def end_descendants(root: int, *, deadline_s: float) -> list[int]:
    """SIGKILL everything below `root` until nothing is left; what `deadline_s` did not end is returned."""
    end = time.monotonic() + deadline_s
    while (left := descendants(root)) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.02)
    return left


def reap() -> dict[int, int]:
    """Collect every child that has ended: pid -> exit status as `subprocess` counts it (negative: a signal)."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended
