"""A small parent that never leaves anything behind: `python -m local_vllm.processes.guard --grace 5 -- COMMAND ...`

It runs COMMAND and watches its own standard input, whose other end its owner holds. When the owner closes it or
dies, when COMMAND ends, or on SIGTERM, the guard asks COMMAND to stop, ends every process below itself (orphans
too: it is their subreaper), removes the shared memory that they had mapped, and exits with COMMAND's status.
Standard library only.
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


class Guard:
    """One command under guard. `run()` returns the exit status to end with."""

    def __init__(self, command: list[str], grace_s: float) -> None:
        self.grace_s = grace_s
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
    parser.add_argument("command", nargs="+", help="after --: the command to run")
    arguments = parser.parse_args()
    return Guard(arguments.command, arguments.grace).run()


if __name__ == "__main__":
    sys.exit(main())
