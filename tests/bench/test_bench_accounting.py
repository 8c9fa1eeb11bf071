"""CPU time is counted for a process and everything below it, by whose work it is."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from benchmarks.accounting import API_SERVER, ENGINE, idle_rates, role, snapshot, used, without_idle

BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
SLEEP = "print('done', flush=True); import time; time.sleep(60)"
BELOW = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN + SLEEP!r}])"


@contextmanager
def python(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is asleep, its work done, when this begins; ended with what is below it."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "done\n"
        yield process
    finally:
        subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=True)
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("code", [BURN + SLEEP, BELOW], ids=["of a process", "of a child"])
def test_the_work_is_counted(code: str) -> None:
    with python(code) as process:
        assert 0.25 < sum(used({}, snapshot([process.pid])).values()) < 3


def test_only_what_is_used_in_between_counts() -> None:
    with python(BURN + SLEEP) as process:
        before = snapshot([process.pid])
        assert before and sum(used(before, snapshot([process.pid])).values()) < 0.1


def test_a_process_that_begins_in_between_counts_whole() -> None:
    before = {(1, 0.5): ("other", 10.0)}
    after = {(1, 0.5): ("other", 10.25), (2, 7.0): ("replica", 1.0)}
    assert used(before, after) == Counter({"other": 0.25, "replica": 1.0})


def test_a_number_that_is_given_to_another_process_is_not_taken_for_the_first() -> None:
    assert used({(1, 0.5): ("other", 10.0)}, {(1, 9.5): ("other", 1.0)}) == Counter({"other": 1.0})


def test_a_process_that_is_gone_is_no_error() -> None:
    with python(SLEEP) as process:
        pid = process.pid
    assert snapshot([pid]) == {}


def test_what_is_used_while_idle_is_taken_off_by_role() -> None:
    net = without_idle(Counter({"replica": 3.0, "other": 2.0}), {"other": 0.5}, took_s=4.0)
    assert net == Counter({"replica": 3.0, "other": 0.0})


def test_a_process_that_sleeps_is_idle() -> None:
    with python(SLEEP) as process:
        assert sum(idle_rates([process.pid], 0.1).values()) < 0.5


@pytest.mark.parametrize(
    ("line", "whose"),
    [
        ("ray::ServeReplica:policy_model:policy_model", "replica"),
        ("/lib/ray/haproxy -f /tmp/haproxy.cfg", "HAProxy"),
        ("/bin/python -m vllm.entrypoints.openai.api_server --model m", API_SERVER),
        ("VLLM::APIServer_1", API_SERVER),
        ("ray::EngineCoreActor.run", ENGINE),
        ("ray::RayWorkerProc.execute", ENGINE),
        ("VLLM::EngineCore", ENGINE),
        ("/lib/ray/raylet --store=/tmp/haproxy", "other"),
        ("", "other"),
    ],
)
def test_the_command_line_tells_whose_work_it_is(line: str, whose: str) -> None:
    assert role(line.split(" ")) == whose
