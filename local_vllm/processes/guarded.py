"""Start a command under the guard program and hold its lifeline. Nothing outside this folder starts processes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from local_vllm.processes import tree

logger = logging.getLogger(__name__)

KILLED_WITHIN_S = 5.0


class Guarded:
    """A command that ends, with everything below it, when this object is closed or its process dies.

    Args:
        command: program and arguments.
        env: the whole environment of the command.
        log_path: file that receives its output, appended to; its folder is made.
        grace_s: seconds that the command gets between SIGTERM and SIGKILL.
        keep_stdout: give the command's standard output back as `stdout` instead of logging it.
        must_run: this process is ended when a signal stops it, and the command with it. Not for one that its user may
            stop at a terminal.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: Path,
        grace_s: float,
        keep_stdout: bool = False,
        must_run: bool = False,
    ) -> None:
        self.grace_s = grace_s
        self._known: dict[int, int | None] = {}
        log_path.parent.mkdir(parents=True, exist_ok=True)
        options = ["--grace", str(grace_s), *(["--owner-must-run"] if must_run else [])]
        with open(log_path, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "local_vllm.processes.guard", *options, "--", *command],
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if keep_stdout else log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.stdout = self._process.stdout

    def poll(self) -> int | None:
        """The exit status of the command, or None while it runs.

        Also notes which processes belong to it, for the case that the guard itself is killed, and wakes a guard that
        is stopped: call it often.
        """
        status = self._process.poll()
        if status is None:
            self._wake()
            for pid in tree.descendants(self.pid):
                if pid not in self._known:
                    self._known[pid] = tree.start_time(pid)
        return status

    def close(self, *, at_once: bool = False) -> int | None:
        """End the command and everything below it; returns its status, None if it could not be ended."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        # The pid of a guard that has been collected may be another process's by now.
        if self._process.poll() is None:
            self._wake()
            if at_once:
                self._kill(tree.descendants(self.pid))
        try:
            self._process.wait(self.grace_s + 15)
        except subprocess.TimeoutExpired:
            self._kill([*tree.descendants(self.pid), self.pid])
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(KILLED_WITHIN_S)
        self._kill(pid for pid, started in self._known.items() if started == tree.start_time(pid))
        return self._process.poll()

    def _wake(self) -> None:
        """A stopped guard would see neither its owner's end nor its command's."""
        if tree.state(self.pid) == tree.STOPPED:
            logger.warning("the guard with pid %d was stopped, and is woken", self.pid)
            os.kill(self.pid, signal.SIGCONT)

    @staticmethod
    def _kill(pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
