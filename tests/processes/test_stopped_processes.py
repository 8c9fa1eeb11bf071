"""An owner that is stopped by a signal, and a guard that is: real processes, really stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from process_facts import gone, until

from local_vllm.processes import guard, tree
from local_vllm.processes.guarded import Guarded

OWNER = """
import os, sys, time
from pathlib import Path
from local_vllm.processes.guarded import Guarded
must_run = sys.argv[2] == "1"
guarded = Guarded(["sleep", "600"], env=os.environ, log_path=Path(sys.argv[1]), grace_s=0.3, must_run=must_run)
print(guarded.pid, flush=True)
time.sleep(600)
"""


@dataclass(frozen=True)
class Owned:
    """A process that holds a command under guard."""

    owner: subprocess.Popen[str]
    guard: int
    command: int

    def stop(self) -> float:
        """SIGSTOP; gives the time of it."""
        os.kill(self.owner.pid, signal.SIGSTOP)
        return time.monotonic()


@contextmanager
def owned(log: Path, *, must_run: bool) -> Iterator[Owned]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(log), str(int(must_run))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        guard_pid = int(owner.stdout.readline())
        assert until(lambda: len(tree.descendants(guard_pid)) == 1)
        yield Owned(owner, guard_pid, tree.descendants(guard_pid)[0])
    finally:
        owner.kill()
        owner.wait()
    assert until(lambda: gone(guard_pid)), "the guard ends with its owner"


def test_a_stopped_owner_that_must_run_is_ended_within_5_s_with_its_command(tmp_path: Path) -> None:
    with owned(tmp_path / "log", must_run=True) as those:
        stopped = those.stop()
        assert those.owner.wait(10) == -signal.SIGKILL
        assert guard.STOPPED_S <= time.monotonic() - stopped < 5
        assert until(lambda: gone(those.guard) and gone(those.command))
    assert f"its owner (pid {those.owner.pid}) is stopped (state T)" in (tmp_path / "log").read_text()


def test_an_owner_that_must_run_and_is_stopped_for_a_moment_goes_on(tmp_path: Path) -> None:
    with owned(tmp_path / "log", must_run=True) as those:
        for _ in range(3):
            those.stop()
            time.sleep(1)
            os.kill(those.owner.pid, signal.SIGCONT)
            time.sleep(guard.TICK_S + 0.2)
        assert those.owner.poll() is None
        assert not gone(those.command)


def test_an_owner_that_its_user_stops_at_a_terminal_keeps_its_command(tmp_path: Path) -> None:
    with owned(tmp_path / "log", must_run=False) as those:
        those.stop()
        time.sleep(guard.STOPPED_S + 2)
        assert those.owner.poll() is None
        os.kill(those.owner.pid, signal.SIGCONT)
        assert until(lambda: tree.state(those.owner.pid) == "S")
        assert not gone(those.command)


def test_an_owner_is_not_blamed_for_the_time_in_which_its_guard_was_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, clock = [], [0.0]
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(guard, "tree", SimpleNamespace(STOPPED="T", state=lambda pid: "T"))
    monkeypatch.setattr(guard, "os", SimpleNamespace(getppid=lambda: 7, kill=lambda *what: ended.append(what)))
    owner = guard.Owner()
    for now in (0.5, 600.5):
        clock[0] = now
        owner.end_if_stopped()
    assert ended == []
    clock[0] = 601.5
    owner.end_if_stopped()
    assert ended == [(7, signal.SIGKILL)]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    started = Guarded(["sleep", "600"], env=os.environ, log_path=tmp_path / "log", grace_s=0.3)
    assert until(lambda: len(tree.descendants(started.pid)) == 1)
    os.kill(started.pid, signal.SIGSTOP)
    assert until(lambda: tree.state(started.pid) == "T")
    yield started
    started.close(at_once=True)


@pytest.mark.parametrize("at_once", [False, True])
def test_closing_ends_a_stopped_guard_and_its_command(guarded: Guarded, at_once: bool) -> None:
    (command,) = tree.descendants(guarded.pid)
    begun = time.monotonic()
    guarded.close(at_once=at_once)
    assert gone(guarded.pid)
    assert until(lambda: gone(command))
    assert time.monotonic() - begun < 5


def test_a_stopped_guard_is_woken_by_its_owners_next_look(guarded: Guarded) -> None:
    assert guarded.poll() is None
    assert until(lambda: tree.state(guarded.pid) == "S")


def test_a_guard_that_does_not_wake_is_ended_with_its_command(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guarded, "_wake", lambda self: None)
    guarded.grace_s = -14.0
    (command,) = tree.descendants(guarded.pid)
    assert guarded.close() == -signal.SIGKILL
    assert gone(guarded.pid)
    assert until(lambda: gone(command))
