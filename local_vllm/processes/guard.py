"""A small parent that never leaves anything behind: `python -m local_vllm.processes.guard --grace 5 -- COMMAND ...`

It runs COMMAND and watches its own standard input, whose other end its owner holds. When the owner closes it or
dies, when COMMAND ends, or on SIGTERM, the guard asks COMMAND to stop, ends every process below itself (orphans
too: it is their subreaper), removes the shared memory that they had mapped, and exits with COMMAND's status.
With `--owner-must-run` an owner that a signal has stopped is ended, as if it had died. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
import time

from local_vllm.processes import tree

TICK_S = 0.5
KILL_DEADLINE_S = 10.0
# An owner may be stopped for a moment by somebody who looks into it with a tool.
STOPPED_S = 2.0
# A look stands for no more time than this: when the guard itself was held up, its owner is not blamed for it.
LONGEST_STEP_S = 1.0


class Owner:
    """The process that started this one. Stopped, it does nothing and nobody hears of it; dead, it is missed."""

    def __init__(self) -> None:
        self.pid = os.getppid()
        self.stopped_s: float | None = None
        self.looked = time.monotonic()

    def end_if_stopped(self) -> None:
        """SIGKILL it once it has been stopped for STOPPED_S: call often."""
        now = time.monotonic()
        passed_s, self.looked = min(now - self.looked, LONGEST_STEP_S), now
        if os.getppid() != self.pid or tree.state(self.pid) != tree.STOPPED:
            self.stopped_s = None
        elif self.stopped_s is None:
            self.stopped_s = 0.0
        else:
            self.stopped_s += passed_s
        if self.stopped_s is not None and self.stopped_s >= STOPPED_S:
            print(f"guard: its owner (pid {self.pid}) is stopped (state T) and is ended", file=sys.stderr, flush=True)
            self.stopped_s = None
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)


class Guard:
    """One command under guard. `run()` returns the exit status to end with. `owner`: whoever has to run for it."""

    def __init__(self, command: list[str], grace_s: float, owner: Owner | None = None) -> None:
        self.grace_s = grace_s
        self.owner = owner
        self.stop_asked = False
        self.status: int | None = None
        self.segments_seen = tree.shared_memory_names()
        self.segments_ours: set[str] = set()
        self.wake_read, wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(sig, self._on_signal)
        tree.become_subreaper()
        guard_pid = os.getpid()
        self.child = subprocess.Popen(  # noqa: PLW1509 (this process has one thread)
            command, stdin=subprocess.DEVNULL, preexec_fn=lambda: tree.die_with_parent(guard_pid)
        )

    def run(self) -> int:
        while self.status is None and not self.stop_asked:
            self._wait(TICK_S)
            if self.owner is not None:
                self.owner.end_if_stopped()
        if self.status is None:
            self._ask_to_stop()
        self._note_segments()
        left = tree.end_descendants(os.getpid(), deadline_s=KILL_DEADLINE_S)
        tree.remove_shared_memory(self.segments_ours)
        if left:
            print(f"guard: these processes did not end: {left}", file=sys.stderr)
        return 128 - self.status if self.status is not None and self.status < 0 else self.status or 0

    def _ask_to_stop(self) -> None:
        # Not Popen's own method: it may collect the child's status, which is then lost to `tree.reap`.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child.pid, signal.SIGTERM)
        deadline = time.monotonic() + self.grace_s
        while self.status is None and time.monotonic() < deadline:
            self._wait(0.1)

    def _wait(self, seconds: float) -> None:
        sources = [self.wake_read] if self.stop_asked else [self.wake_read, sys.stdin.fileno()]
        ready, _, _ = select.select(sources, [], [], seconds)
        if self.wake_read in ready:
            os.read(self.wake_read, 512)
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 512):
            self.stop_asked = True
        self.status = tree.reap().get(self.child.pid, self.status)
        self._note_segments()

    def _note_segments(self) -> None:
        """Remember which new shared memory belongs to our tree while its owner still lives to show it."""
        new = tree.shared_memory_names() - self.segments_seen
        if new:
            self.segments_seen |= new
            self.segments_ours |= new & tree.mapped_shared_memory(tree.descendants(os.getpid()))

    def _on_signal(self, sig: int, frame: object) -> None:
        if sig != signal.SIGCHLD:
            self.stop_asked = True


def main() -> int:
    parser = argparse.ArgumentParser(prog="guard", description=__doc__)
    parser.add_argument("--grace", type=float, default=5.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--owner-must-run", action="store_true", help="end a stopped parent")
    parser.add_argument("command", nargs="+", help="after --: the command to run")
    arguments = parser.parse_args()
    owner = Owner() if arguments.owner_must_run else None
    return Guard(arguments.command, arguments.grace, owner).run()


if __name__ == "__main__":
    sys.exit(main())
