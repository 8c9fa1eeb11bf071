"""`job.py --nodes N -- COMMAND ...`: on the head, runs COMMAND once N nodes have joined.

Its exit status is COMMAND's. The script's message and its `stop` come through standard input (lifeline.py).
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import host
from lifeline import LOST, STOP, Lifeline, ScriptGone, exit_on_signals

from local_vllm.processes import tree

POLL_S = 0.25
# From the second SIGTERM to SIGKILL.
KILL_AFTER_S = 20.0
# What is left for an orderly end when the script is gone, and with it the cluster.
LAST_S = 10.0
AWAIT_NODES = Path(__file__).with_name("await_nodes.py")


class NotWhole(Exception):
    """A node ended before the command could begin; the message is one line."""


def main() -> int:
    asked = arguments()
    exit_on_signals()
    try:
        return run(asked, Lifeline())
    except ScriptGone:
        return 1  # there is nobody left to tell
    except (host.HostError, NotWhole) as error:
        say(str(error))
        return 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="job.py", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True, help="how many there will be, this one included")
    parser.add_argument("--join-timeout", type=float, default=300.0, help="seconds for all of them to join")
    parser.add_argument(
        "--stop-timeout", type=float, default=330.0, help="seconds to stop before it is made to"
    )
    parser.add_argument("--cwd", default=".", help="where to run it")
    parser.add_argument("command", nargs="+", help="after --: what to run")
    return parser.parse_args()


def run(asked: argparse.Namespace, lifeline: Lifeline) -> int:
    """Wait for the nodes, then run the command; returns its status, or why it did not begin.

    Raises:
        ScriptGone: the script has ended, and so has everything here.
        HostError, NotWhole: the command could not begin.
    """
    message = lifeline.message()
    with host.own_folder() as folder:
        environment = job_environment(folder, message)
        if not Path(asked.cwd).is_dir():
            raise host.HostError(f"there is no folder {asked.cwd} on the head: give --cwd one that is")
        wait = [sys.executable, str(AWAIT_NODES), message["head"], str(asked.nodes), str(asked.join_timeout)]
        waiting = Child(wait, environment, asked.cwd, KILL_AFTER_S)
        status = waiting.watch(lifeline, on_lost=_give_up)
        if waiting.was_stopped:  # even if it saw the last node join
            return 128 + signal.SIGTERM
        if status != 0:
            return status
        return Child(asked.command, environment, asked.cwd, asked.stop_timeout).watch(lifeline, on_lost=_tell)


def job_environment(folder: Path, message: Mapping[str, Any]) -> dict[str, str]:
    """That of the head's node, with the cluster's address."""
    address = message["head"].rpartition(":")[0]
    return host.environment(folder, message, address) | {"RAY_ADDRESS": message["head"]}


def _give_up(name: str) -> None:
    raise NotWhole(f"{name} has ended before all nodes were there")


def _tell(name: str) -> None:
    say(f"{name} has left the cluster")


class Child:
    """A process in a session of its own: signals reach it from here only. Nothing of it outlives `watch`."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], cwd: str, stop_timeout_s: float
    ) -> None:
        self._stop_timeout_s = stop_timeout_s
        self._stops = 0
        self._due: float | None = None  # when it is asked again, less kindly
        tree.become_subreaper()
        with_us = functools.partial(tree.die_with_parent, os.getpid(), signal.SIGTERM)
        try:
            self._process = subprocess.Popen(  # noqa: PLW1509 (this process has one thread)
                command,
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=with_us,
            )
        except OSError as error:
            raise host.HostError(f"{command[0]} cannot be run on the head: {error.strerror}") from error

    @property
    def was_stopped(self) -> bool:
        """Whether the script said stop."""
        return self._stops > 0

    def watch(self, lifeline: Lifeline, on_lost: Callable[[str], None]) -> int:
        """Wait for its end, passing `stop` on; returns its status as a shell gives it.

        Raises:
            ScriptGone: the script has ended, and so has the child.
        """
        try:
            while (status := self._process.poll()) is None:
                for word in lifeline.words(POLL_S):
                    if word == STOP:
                        self._stop()
                    elif word.startswith(LOST):
                        on_lost(word.removeprefix(LOST).strip())
                if self._due is not None and time.monotonic() > self._due:
                    self._stop()
            return 128 - status if status < 0 else status
        finally:
            self._end()

    def _stop(self) -> None:
        """The first asks; the second, to `ng_run`, means not to wait for requests; the third kills."""
        self._stops += 1
        self._process.send_signal(signal.SIGTERM if self._stops < 3 else signal.SIGKILL)
        self._due = time.monotonic() + (self._stop_timeout_s if self._stops == 1 else KILL_AFTER_S)

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(LAST_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        tree.end_descendants(os.getpid(), deadline_s=LAST_S)


def say(what: str) -> None:
    print(f"cluster: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
