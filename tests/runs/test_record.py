"""The record of a run on disk, and the sweep after runs that were killed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from local_vllm.plan.cluster import Cluster, Holding, Node
from local_vllm.plan.placement import plan_placements
from local_vllm.plan.topology import PackStrategy, Topology
from local_vllm.processes import members
from local_vllm.processes.tree import start_time
from local_vllm.runs import record as records
from local_vllm.runs.tenancy import SoleTenant


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_a_record_is_there_while_its_run_lives_and_then_gone_with_its_folder() -> None:
    with records.run_record() as record:
        assert records.records() == [record]
        assert record.is_alive
        assert Path(record.volatile).stat().st_mode & 0o077 == 0
    assert records.records() == []
    assert not Path(record.volatile).exists()
    assert Path(record.logs).is_dir(), "logs outlive the run"


def test_a_record_comes_back_from_disk_with_its_servers_and_the_nodes_they_are_on() -> None:
    nodes = (Node("n1", "10.0.0.7", 8, 6, 64, 64.5, "H200", (("zone", "a"),), (Holding("run 1", 2),)), Node("n2", "b", 8, 8, 9, 9))
    (placement,) = plan_placements(Cluster(nodes), [Topology("m", 2, 3, 2, PackStrategy.STRICT)])
    with records.run_record() as record:
        server = records.ServerRecord("m", "local_vllm_model", "org/m", "http://h/m/v1", "healthy", placement=placement)
        full = replace(record, applications=("m", "gateway"), servers=(server,), cluster=Cluster(nodes))
        records.write(full)
        assert records.records() == [full]


def test_the_sweep_takes_the_dead_run_and_leaves_the_living() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with records.run_record() as alive:
        dead = replace(alive, run_id="deadbeef", pid=ended.pid, volatile=alive.volatile + "-dead")
        Path(dead.volatile).mkdir()
        records.write(dead)
        assert [record.run_id for record in records.sweep()] == ["deadbeef"]
        assert records.records() == [alive]
        assert Path(alive.volatile).is_dir()
        assert not Path(dead.volatile).exists()


def test_the_sweep_ends_what_the_engines_of_a_dead_run_have_left() -> None:
    left, ended = subprocess.Popen(["sleep", "600"]), subprocess.Popen(["true"])
    ended.wait()
    with records.run_record() as alive:
        dead = replace(alive, run_id=f"dead{left.pid}", pid=ended.pid, volatile=alive.volatile + "-dead")
        folder = members.folder_of(dead.run_id, "policy_model", 3)
        folder.mkdir()
        (folder / f"{left.pid}-{start_time(left.pid)}").touch()
        records.write(dead)
        records.sweep()
    assert left.wait(5) == -9
    assert not folder.exists()


def test_a_pid_that_was_given_to_another_process_is_a_dead_run() -> None:
    with records.run_record() as record:
        assert not replace(record, run_id="deadbeef", started=record.started - 1).is_alive


def test_only_the_newest_logs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "KEPT_LOGS", 2)
    for _ in range(4):
        with records.run_record():
            pass
    assert len(list((records.state_folder() / "logs").iterdir())) == 2


def test_a_full_disk_does_not_end_a_run_that_is_under_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with records.run_record() as record:
        # A folder where the new record would be written.
        (tmp_path / "local_vllm" / "runs" / f"{record.run_id}.new").mkdir()
        SoleTenant().keep(replace(record, url="http://127.0.0.1:8000"))
        assert records.records() == [record]
    assert f"the record of run {record.run_id} is out of date" in caplog.text


def test_a_run_whose_processes_cannot_be_seen_lives_while_it_holds_its_lock() -> None:
    """As in another container of this host, with a home in common."""
    program = (
        "import time; from dataclasses import replace; from local_vllm.runs import record as records\n"
        "with records.run_record() as record:\n"
        "    records.write(replace(record, pid=record.pid + 2**22))\n"
        "    print(record.run_id, flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        run_id = other.stdout.readline().strip()
        assert [record.is_alive for record in records.records()] == [True]
        assert records.sweep() == []
    finally:
        other.kill()
        other.wait()
    assert [record.run_id for record in records.sweep()] == [run_id]
    assert list((records.state_folder() / "runs").iterdir()) == []
