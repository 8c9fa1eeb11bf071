"""The processes of one engine on one node: each enlists itself in a folder, so that whoever watches knows them all.

They are told apart by pid and start time, and looked at through /proc. Standard library only: the engine's own
processes import this. What a look means is left to others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from local_vllm.processes import tree

FOLDER = "LOCAL_VLLM_MEMBERS"
"""The variable that names the folder to an engine's processes."""
# Not the temporary folder of this process: on every node it is the same.
_PARENT = Path("/tmp")
_PREFIX = "lv-m-"
_SEGMENTS = "shared-memory"
# A folder in which nobody lives may be that of an engine which is about to start.
SWEPT_AFTER_S = 3600.0
_NAME_CHARACTERS = 40
HELPER = "a helper process"
"""The name of what Python's multiprocessing has started and that has taken no title: it may come and go."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Member:
    """One process for good. `name` is what it calls itself."""

    pid: int
    started: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Seen:
    """A member at one moment: the state letter of /proc, empty when it is gone, and the seconds for which it has had a
    CPU, or has wanted one that others had.
    """

    member: Member
    state: str
    cpu_s: float = 0.0

    @property
    def is_gone(self) -> bool:
        """A zombie is gone too: it only waits to be collected."""
        return self.state in ("", "Z", "X")

    @property
    def is_stopped(self) -> bool:
        """By SIGSTOP; `t` is a debugger's doing."""
        return self.state == "T"


def folder_of(run_id: str, server: str, launch: int) -> Path:
    """Where the members of one launch of an engine enlist themselves: the same path on each of its nodes."""
    return _PARENT / f"{_PREFIX}{run_id}-{server}-{launch}"


def enlist() -> None:
    """Called by each process of an engine as it begins; nothing happens in any other."""
    folder = os.environ.get(FOLDER)
    if folder:
        with contextlib.suppress(OSError):
            Path(folder).mkdir(mode=0o700, exist_ok=True)
            (Path(folder) / f"{os.getpid()}-{tree.start_time(os.getpid())}-{_namespace()}").touch()


def _namespace() -> str:
    """The pids of another container of this machine are other processes', though it may have the folder in common."""
    with contextlib.suppress(OSError):
        return str(os.stat("/proc/self/ns/pid").st_ino)
    return ""


def members(folder: Path) -> tuple[Member, ...]:
    """Those that enlisted themselves there and live."""
    found = []
    with contextlib.suppress(OSError):
        for pid, started in _enlisted(folder, here=True):
            if tree.start_time(pid) == started:
                found.append(Member(pid, started, _name(pid)))
    return tuple(found)


def _enlisted(folder: Path, *, here: bool) -> Iterator[tuple[int, int]]:
    """Pid and start time of whoever enlisted there in this container, or in others."""
    for entry in sorted(os.listdir(folder)):
        pid, started, namespace = (*entry.split("-"), "", "")[:3]
        if pid.isdigit() and started.isdigit() and (namespace in ("", _namespace())) == here:
            yield int(pid), int(started)


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if any("multiprocessing" in word for word in words):
            return HELPER
        title = words[0].strip()
        if "::" in title:
            return title.partition(".")[0][:_NAME_CHARACTERS]
        if "-m" in words:
            return words[words.index("-m") + 1][:_NAME_CHARACTERS]
        return Path(title).name[:_NAME_CHARACTERS]
    return "process"


def look(watched: Iterable[Member]) -> tuple[Seen, ...]:
    """Each of them as it is now."""
    return tuple(map(_look, watched))


def _look(member: Member) -> Seen:
    try:
        fields = Path(f"/proc/{member.pid}/stat").read_text().rpartition(")")[2].split()
        state, cpu_s, started = fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, int(fields[19])
    except (OSError, ValueError, IndexError):
        return Seen(member, "")
    # Another process may have the pid by now.
    return Seen(member, state, cpu_s + _waited_s(member.pid)) if started == member.started else Seen(member, "")


def _waited_s(pid: int) -> float:
    """For how long its first thread was ready to run and did not: 0 where the kernel does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def end(folder: Path, watched: Sequence[Member] = ()) -> None:
    """SIGKILL whoever is enlisted there, or was `watched`; remove the folder, and the shared memory that they leave."""
    those = {*members(folder), *watched}
    segments = _noted_shared_memory(folder) | shared_memory_of(those)
    for member in those:
        if tree.start_time(member.pid) == member.started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member.pid, signal.SIGKILL)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and any(not seen.is_gone for seen in look(those)):
        time.sleep(0.02)
    tree.remove_shared_memory(segments)
    shutil.rmtree(folder, ignore_errors=True)


def shared_memory_of(watched: Iterable[Member]) -> set[str]:
    """The segments that they map and that nobody but vLLM makes: those of its message queues."""
    return {name for name in tree.mapped_shared_memory(member.pid for member in watched) if is_vllms(name)}


def note_shared_memory(folder: Path, watched: Iterable[Member]) -> None:
    """Write down what they map now, for whoever ends them, or finds them dead."""
    with contextlib.suppress(OSError):
        (folder / _SEGMENTS).write_text("\n".join(sorted(shared_memory_of(watched))))


def _noted_shared_memory(folder: Path) -> set[str]:
    with contextlib.suppress(OSError):
        return set((folder / _SEGMENTS).read_text().split())
    return set()


def is_vllms(segment: str) -> bool:
    """Python's own names for shared memory and semaphores; what Ray shares with its workers has others."""
    return segment.startswith(("psm_", "sem."))


def end_earlier(folder: Path) -> None:
    """`end` for the earlier launches of the same engine on this node."""
    stem = folder.name.rpartition("-")[0]
    for other in folder.parent.glob(f"{stem}-*"):
        if other != folder and other.name.rpartition("-")[0] == stem:
            end(other)


def end_run(run_id: str) -> None:
    """`end` for all engines of a run on this node; nothing happens where they have ended well."""
    for folder in _PARENT.glob(f"{_PREFIX}{run_id}-*"):
        end(folder)


def sweep() -> None:
    """Remove the folders of this user in which nobody has lived for an hour; not those of another container."""
    for folder in _PARENT.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.stat()
            old = time.time() - status.st_mtime > SWEPT_AFTER_S
            ours = status.st_uid == os.getuid() and not any(_enlisted(folder, here=False))
            if old and ours and not members(folder):
                end(folder)
