"""The guard program with real children that are really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import pytest
from process_facts import gone, until

from local_vllm.processes import tree
from local_vllm.processes.guarded import Guarded

# A command that leaves a grandchild in a session of its own, maps shared memory and ignores SIGTERM.
STUBBORN = """
import signal, subprocess, sys, time
from multiprocessing import shared_memory, resource_tracker
signal.signal(signal.SIGTERM, signal.SIG_IGN)
segment = shared_memory.SharedMemory(create=True, size=64)
resource_tracker.unregister(segment._name, "shared_memory")
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(segment.name, grandchild.pid, flush=True)
time.sleep(600)
"""


class Stubborn:
    """STUBBORN under guard, with what it told about itself."""

    def __init__(self, tmp_path: Path) -> None:
        self.guarded = Guarded(
            [sys.executable, "-c", STUBBORN], env=os.environ, log_path=tmp_path / "log", grace_s=0.3, keep_stdout=True
        )
        assert self.guarded.stdout is not None
        segment, grandchild = self.guarded.stdout.readline().split()
        self.segment, self.grandchild = segment.decode().lstrip("/"), int(grandchild)
        self.child = tree.descendants(self.guarded.pid)[0]
        assert until(lambda: self.guarded.poll() is None and self.grandchild in tree.descendants(self.guarded.pid))
        time.sleep(1.2)  # two ticks: the guard has seen the segment
        self.guarded.poll()

    def nothing_left(self) -> bool:
        pids = (self.guarded.pid, self.child, self.grandchild)
        return all(map(gone, pids)) and self.segment not in tree.shared_memory_names()


@pytest.fixture
def stubborn(tmp_path: Path):
    started = Stubborn(tmp_path)
    yield started
    started.guarded.close(at_once=True)
    tree.remove_shared_memory({started.segment})


def test_closing_ends_a_command_that_ignores_sigterm_with_its_tree_and_its_shared_memory(stubborn: Stubborn) -> None:
    stubborn.guarded.close()
    assert stubborn.nothing_left()


def test_a_command_that_is_killed_takes_its_grandchildren_and_its_shared_memory_with_it(stubborn: Stubborn) -> None:
    os.kill(stubborn.child, signal.SIGKILL)
    assert until(lambda: stubborn.guarded.poll() is not None)
    assert stubborn.guarded.poll() == 128 + signal.SIGKILL
    assert stubborn.nothing_left()


def test_a_killed_guard_takes_its_command_along_and_close_ends_the_rest(stubborn: Stubborn) -> None:
    os.kill(stubborn.guarded.pid, signal.SIGKILL)
    assert until(lambda: gone(stubborn.child)), "the kernel ends the command with its guard"
    stubborn.guarded.close()
    assert until(lambda: gone(stubborn.grandchild))


def test_an_owner_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    owner_code = f"""
import os, sys, time
from pathlib import Path
from local_vllm.processes.guarded import Guarded
guarded = Guarded([sys.executable, "-c", {STUBBORN!r}], env=os.environ, log_path=Path({str(tmp_path / "log")!r}),
                  grace_s=0.3, keep_stdout=True)
print(guarded.pid, guarded.stdout.readline().decode(), flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", owner_code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    guard, segment, grandchild = owner.stdout.readline().split()
    time.sleep(1.2)
    owner.kill()
    owner.wait()
    assert until(lambda: gone(int(guard)) and gone(int(grandchild)))
    assert segment.lstrip("/") not in tree.shared_memory_names()


def test_the_status_of_the_command_is_the_status_of_the_guard(tmp_path: Path) -> None:
    guarded = Guarded([sys.executable, "-c", "raise SystemExit(7)"], env=os.environ, log_path=tmp_path / "log", grace_s=1)
    assert until(lambda: guarded.poll() is not None)
    assert guarded.close() == 7


def test_processes_below_one_that_has_the_pid_of_an_ended_guard_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = Guarded([sys.executable, "-c", ""], env=os.environ, log_path=tmp_path / "log", grace_s=1)
    assert until(lambda: guarded.poll() is not None)
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        monkeypatch.setattr(tree, "descendants", lambda root: [stranger.pid])
        guarded.close(at_once=True)
        with pytest.raises(subprocess.TimeoutExpired):
            stranger.wait(0.5)
    finally:
        stranger.kill()
        stranger.wait()


def test_shared_memory_that_a_living_process_maps_is_not_removed() -> None:
    segment = shared_memory.SharedMemory(create=True, size=64)
    name = segment.name.lstrip("/")
    try:
        assert tree.remove_shared_memory({name}) == []
        assert name in tree.shared_memory_names()
    finally:
        segment.close()
        segment.unlink()
