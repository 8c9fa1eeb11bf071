"""`launch.py ssh|slurm ...`: a Ray cluster on other hosts, a command on it, and all of it ended after.

Each host runs member.py, the head also job.py; this process holds their standard inputs. However it ends,
they see the end of their input and end too. Standard library only: it may run where nothing is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from commands import LaunchError, Plan, dry_run_command, shown, slurm_plan, ssh_plan
from lifeline import ALIVE, BEAT_S, LOST, STOP
from options import arguments

POLL_S = 0.1
HEAD_DEADLINE_S = 180.0
END_DEADLINE_S = 60.0
CONNECTION_LOST = 255


class Remote:
    """A command that runs something elsewhere, and its standard input."""

    def __init__(self, name: str, command: list[str], plan: Plan, *, read: bool = False) -> None:
        self.name = name
        env = {key: value for key, value in os.environ.items() if key not in plan.without}
        try:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if read else None,
                start_new_session=True,  # a Ctrl-C reaches this process alone, which knows the order
            )
        except OSError as error:
            raise LaunchError(f"{command[0]} cannot be run here: {error.strerror}") from error
        os.set_blocking(self._process.stdin.fileno(), False)
        self.output = self._process.stdout

    def tell(self, line: str) -> None:
        """One line to the other end; one that is gone hears nothing."""
        with contextlib.suppress(OSError):
            os.write(self._process.stdin.fileno(), line.encode() + b"\n")

    def status(self) -> int | None:
        """The exit status as a shell gives it; None while it runs."""
        status = self._process.poll()
        return 128 - status if status is not None and status < 0 else status

    def hang_up(self) -> None:
        """Close the line: the other end stops what it runs, and ends."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def end(self, deadline: float) -> None:
        """Wait until it has ended; what hangs is ended here, the other end then sees its line closed."""
        for step in (None, self._process.terminate, self._process.kill):
            if step is not None:
                step()
            try:
                self._process.wait(max(0.1, deadline - time.monotonic()))
                return
            except subprocess.TimeoutExpired:
                deadline = time.monotonic() + 5


class Stopped(Exception):
    """A signal came before there was a command that it could stop."""


class Cluster:
    """The parts of one cluster, from the first to the last."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.members: list[Remote] = []
        self.job: Remote | None = None
        self._lost: set[str] = set()
        self._beat_at = time.monotonic()
        self._signals: list[int] = []
        self._signals_told = 0
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, self._on_signal)

    def run(self) -> int:
        """Start everything, wait for the command, end everything; returns the command's status."""
        try:
            return self._run()
        except Stopped:
            return 128 + self._signals[0]
        finally:
            self._end()

    def _run(self) -> int:
        message: dict[str, Any] = {
            "token": secrets.token_hex(32),
            "hosts": self.plan.hosts,
            "environment": dict(self.plan.environment),
        }
        head = self._start(self.plan.hosts[0], self.plan.head, read=True)
        for name, command in self.plan.workers:
            self._start(name, command)
        head.tell(json.dumps(message))
        message["head"] = self._head_address(head)
        for worker in self.members[1:]:
            worker.tell(json.dumps(message))
        self.job = Remote(self.plan.hosts[0], self.plan.job, self.plan)
        self.job.tell(json.dumps(message))
        while (status := self.job.status()) is None:
            self._look_around()
        if status == CONNECTION_LOST:
            say(f"the command ended with status {status}: so does ssh when it loses its connection")
        return status

    def _start(self, name: str, command: list[str], *, read: bool = False) -> Remote:
        self.members.append(Remote(name, command, self.plan, read=read))
        return self.members[-1]

    def _head_address(self, head: Remote) -> str:
        """What the head says in its line of JSON; a login shell may have said something before it."""
        deadline = time.monotonic() + HEAD_DEADLINE_S
        heard = b""
        while time.monotonic() < deadline:
            for line in heard.split(b"\n")[:-1]:
                if line.startswith(b"{"):
                    return json.loads(line)["address"]
            ready, _, _ = select.select([head.output], [], [], POLL_S)
            more = os.read(head.output.fileno(), 65536) if ready else b""
            heard += more
            self._look_around()
            if (status := head.status()) is not None and not more:
                raise LaunchError(f"no Ray head on {head.name}: its command ended with status {status}")
        raise LaunchError(f"no Ray head came up on {head.name} within {HEAD_DEADLINE_S:.0f} s")

    def _look_around(self) -> None:
        """Signs of life to all, deaths and signals to whom they concern. Takes a moment."""
        if time.monotonic() - self._beat_at > BEAT_S:
            self._beat_at = time.monotonic()
            for remote in self._remotes():
                remote.tell(ALIVE)
        for member in self.members:
            if member.status() is not None and member.name not in self._lost:
                self._lost.add(member.name)
                self._on_lost(member)
        while self._signals_told < len(self._signals):
            self._signals_told += 1
            self._on_stop()
        time.sleep(POLL_S)

    def _on_lost(self, member: Remote) -> None:
        if self.job is None:
            raise LaunchError(f"{member.name} ended with status {member.status()} before the cluster was up")
        self.job.tell(f"{LOST} {member.name}")

    def _on_stop(self) -> None:
        if self.job is None:
            raise Stopped
        first = self._signals_told == 1
        say("stopping; once more does not wait for requests in flight" if first else "stopping at once")
        self.job.tell(STOP)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signals.append(signum)

    def _remotes(self) -> list[Remote]:
        return [*self.members, *([self.job] if self.job else [])]

    def _end(self) -> None:
        """The command first, then Ray: each sees its line closed."""
        if self.job is not None:
            self.job.hang_up()
            self.job.end(time.monotonic() + END_DEADLINE_S)
        for member in self.members:
            member.hang_up()
        deadline = time.monotonic() + END_DEADLINE_S
        for member in self.members:
            member.end(deadline)


def dry_run(plan: Plan, command: list[str]) -> int:
    """Print what would be run where, then let the command draw its plan."""
    print(f"# {plan.hosts[0]}: Ray's head", shown(plan.head), sep="\n")
    for name, words in plan.workers:
        print(f"# {name}: Ray, joining it", shown(words), sep="\n")
    print(f"# {plan.hosts[0]}: the command, once all have joined", shown(plan.job), sep="\n")
    print("# Each is given the cluster's token and the head's address through its standard input.")
    print("# The command's plan:", shown(command), sep="\n", flush=True)
    return subprocess.run(command).returncode


def main(kind: str, argv: Sequence[str]) -> int:
    asked = arguments(kind, argv)
    try:
        plan = (ssh_plan if kind == "ssh" else slurm_plan)(asked)
        dry = dry_run_command(asked, len(plan.hosts)) if asked.dry_run else None
    except LaunchError as error:
        say(str(error))
        return 2
    try:
        return dry_run(plan, dry) if dry else Cluster(plan).run()
    except LaunchError as error:
        say(str(error))
        return 1


def say(what: str) -> None:
    print(f"cluster: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
