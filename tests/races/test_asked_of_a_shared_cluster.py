"""What a dry run and `ng_status` say of a cluster that others use, and whether a dry run told the truth.

The engine is a stand-in: what counts is how it was launched.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import pytest
from engine_answers import SERVER
from joined_ray import JoinedRay
from ng_run_process import KEY, NgRun, command_line, running, until
from shown_commands import shown_engines

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent
NAMES = ("theirs", "ours", "large")
SIZES = {"theirs": 2, "ours": 2, "large": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "env.yaml").touch()
    for name in NAMES:
        (folder / f"{name}.yaml").write_text(SERVER.format(name=name, key=KEY, size=SIZES[name]))
    return folder


@pytest.fixture(scope="module")
def cluster(stand_in_cluster: JoinedRay) -> JoinedRay:
    return stand_in_cluster


def ask(cluster: JoinedRay, folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A command of ours, beside the run: with a state folder of its own unless `more` says otherwise."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {**cluster.environment, "XDG_STATE_HOME": str(folder / "other"), **more}
    command = [BIN / words[0], *words[1:]]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def dry(cluster: JoinedRay, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    words = [f"+config_paths=[{name}.yaml]", "+dry_run=true", f"++ray_address={cluster.address}"]
    return ask(cluster, folder, "ng_run", *words)


@pytest.fixture(scope="module")
def foreseen(cluster: JoinedRay, folder: Path) -> str:
    """What a dry run says before anything runs."""
    done = dry(cluster, folder, "theirs")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def run(cluster: JoinedRay, folder: Path, foreseen: str) -> Iterator[NgRun]:
    words = ["+config_paths=[theirs.yaml]", f"++ray_address={cluster.address}"]
    with running(folder, *words, environment=cluster.environment) as run:
        yield run


def test_a_dry_run_takes_nothing_of_the_cluster_that_it_reads(cluster: JoinedRay, foreseen: str) -> None:
    assert f"a plan for the Ray cluster at {cluster.address}, as it is now: 1 node x 4 GPUs." in foreseen
    assert "A0 A0 .  ." in foreseen
    assert cluster.gpus_free() == 4
    assert cluster.named_actors() == "[]"


def test_requests_take_the_short_way_past_serve_whose_own_ids_are_uuids(run: NgRun) -> None:
    """Until HAProxy has seen a replica answer, Serve's fallback hands requests on, and gives them ids of its own."""

    def id_is_ours() -> bool:
        with urlopen(f"{run.url}/health", timeout=10) as answer:
            return re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"] or "") is not None

    assert until(id_is_ours, 20)


def test_the_launched_process_has_the_command_line_and_the_variables_that_the_dry_run_showed(
    run: NgRun, foreseen: str
) -> None:
    record = run.record()
    ((variables, words),) = shown_engines(foreseen)
    port = str(urlsplit(record["servers"][0]["engine_url"]).port)
    engine = launched_with(port)
    executed, environment = engine.cmdline(), engine.environ()

    assert executed[1:] == [port if word == "<free port>" else word for word in words[1:]]
    folder = Path(record["logs"]).name
    told = {name: value.replace("<date>-<time>-<run>", folder) for name, value in variables.items()}
    for name in ("LOCAL_VLLM_MEMBERS", "VLLM_RPC_BASE_PATH"):
        told[name] = told[name].replace("<run>", record["run_id"])
    assert told.pop("VLLM_API_KEY") == "***"
    assert environment["VLLM_API_KEY"] == KEY
    told["VLLM_CONFIG_ROOT"] = told["VLLM_CONFIG_ROOT"].replace("/other/", "/state/")
    assert {name: environment.get(name) for name in told} == told


def launched_with(port: str) -> psutil.Process:
    """`vllm serve` itself, and not the guard that holds its command line too. Ray has started both."""
    for process in psutil.process_iter():
        line = command_line(process).split()
        if line[1:3] == ["-m", "vllm.entrypoints.openai.api_server"] and f"--port {port}" in " ".join(line):
            return process
    raise AssertionError(f"no engine was launched with --port {port}")


def test_gpus_that_a_run_has_are_drawn_with_its_name(run: NgRun, cluster: JoinedRay, folder: Path) -> None:
    done = dry(cluster, folder, "ours")

    assert done.returncode == 0, done.stderr
    assert "A0 A0 #  #" in done.stdout
    holder = f"theirs of run {run.record()['run_id']} (pid {run.process.pid}"
    assert f"in use by others: 2 (2 by {holder}" in done.stdout
    assert f"URL  {run.url}/ours/v1" in done.stdout


def test_what_does_not_fit_beside_a_run_says_who_has_the_gpus(
    run: NgRun, cluster: JoinedRay, folder: Path
) -> None:
    done = dry(cluster, folder, "large")

    assert done.returncode == 1
    assert "the largest free block is 2" in done.stderr
    assert f"2 by theirs of run {run.record()['run_id']}" in done.stderr
    assert ".  .  #  #" in done.stdout or ". . # #" in done.stdout


@pytest.mark.parametrize("told", ["by the cluster", "by the record on disk", "by both"])
def test_ng_status_shows_a_real_run(run: NgRun, cluster: JoinedRay, folder: Path, told: str) -> None:
    words = ["ng_status"]
    if told != "by the record on disk":
        words.append(f"+ray_address={cluster.address}")
    more = {} if told == "by the cluster" else {"XDG_STATE_HOME": str(run.state)}
    text = ask(cluster, folder, *words, **more)
    done = ask(cluster, folder, *words, "--json", **more)

    assert (text.returncode, text.stderr, done.returncode) == (0, "", 0)
    (one,) = json.loads(done.stdout)["runs"]
    (server,) = one["servers"]
    assert (one["run_id"], one["state"], one["pid"]) == (run.record()["run_id"], "healthy", run.process.pid)
    assert (one["url"], one["ray_address"], one["private_cluster"]) == (run.url, cluster.address, False)
    assert (server["name"], server["state"], server["model"]) == ("theirs", "healthy", "local-vllm-default")
    assert server["url"] == f"{run.url}/theirs/v1"
    assert Path(server["log_path"]).is_file()
    assert [node["gpus_free"] for node in one["nodes"]] == [2]
    assert "A0 A0 .  ." in text.stdout
    assert f"engine  {server['engine_url']}  (on {server['node_address']})" in text.stdout
    assert KEY not in text.stdout + done.stdout


def test_after_the_run_there_is_none(run: NgRun, cluster: JoinedRay, folder: Path) -> None:
    assert run.stop() == 0

    done = ask(cluster, folder, "ng_status", RAY_ADDRESS=cluster.address, XDG_STATE_HOME=str(run.state))
    where = f"this machine or on the cluster at {cluster.address}"
    assert done.stdout == f"No runs on {where}; ng_run starts one.\n"
