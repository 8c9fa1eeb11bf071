"""The scripts of the sample topologies: what each plans, says and hands on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts/topologies"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")

INSTRUCT, THINKING = "Qwen3-30B-A3B-Instruct-2507", "Qwen3-30B-A3B-Thinking-2507"
LARGE = "Qwen3-235B-A22B-Instruct-2507-FP8"

# Script -> the rows of the drawing, and each server with its topology.
DRAWN = {
    "1-node-tp8": (["A0 " * 8], {INSTRUCT: "DP 1 x TP 8, strict, 8 GPUs on 1 node"}),
    "1-node-dp2-tp4": (["A0 " * 4 + "A1 " * 4], {INSTRUCT: "DP 2 x TP 4, strict, 8 GPUs on 1 node"}),
    "1-node-two-tp4": (
        ["A0 " * 4 + "B0 " * 4],
        {
            INSTRUCT: "DP 1 x TP 4, strict, 4 GPUs on 1 node",
            THINKING: "DP 1 x TP 4, strict, 4 GPUs on 1 node",
        },
    ),
    "2-nodes-dp2-tp8": (["A0 " * 8, "A1 " * 8], {INSTRUCT: "DP 2 x TP 8, strict, 16 GPUs on 2 nodes"}),
    "2-nodes-two-tp8": (
        ["A0 " * 8, "B0 " * 8],
        {
            INSTRUCT: "DP 1 x TP 8, strict, 8 GPUs on 1 node",
            THINKING: "DP 1 x TP 8, strict, 8 GPUs on 1 node",
        },
    ),
    "2-nodes-tp16-span": (["A0 " * 8] * 2, {LARGE: "DP 1 x TP 16, span, 16 GPUs on 2 nodes"}),
    "4-nodes-dp2-tp16-span": (
        ["A0 " * 8] * 2 + ["A1 " * 8] * 2,
        {LARGE: "DP 2 x TP 16, span, 32 GPUs on 4 nodes"},
    ),
}


def run(script: str | Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [FOLDER / script, *words], capture_output=True, text=True, timeout=60, cwd="/", env=inherited | env
    )


@pytest.fixture
def echoing(tmp_path: Path) -> Path:
    """The scripts beside an `ng_run` that prints its words, one a line."""
    shutil.copytree(FOLDER, tmp_path / "scripts/topologies")
    ng_run = tmp_path / ".venv/bin/ng_run"
    ng_run.parent.mkdir(parents=True)
    ng_run.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    ng_run.chmod(0o755)
    return tmp_path / "scripts/topologies"


def test_every_sample_topology_has_its_script():
    assert {path.name for path in FOLDER.iterdir() if os.access(path, os.X_OK)} == set(DRAWN)


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.iterdir()))
def test_a_topology_script_parses_and_shellcheck_finds_nothing(script: str):
    subprocess.run(["bash", "-n", FOLDER / script], check=True)
    if not SHELLCHECK.exists():
        pytest.skip("shellcheck is not installed (pip install 'local_vllm[test]')")
    done = subprocess.run([SHELLCHECK, "-x", "-P", FOLDER, FOLDER / script], capture_output=True, text=True)
    assert done.stdout == ""


@pytest.mark.parametrize("script", DRAWN)
def test_a_dry_run_draws_the_topology_of_the_scripts_name(script: str):
    rows, servers = DRAWN[script]
    done = run(script, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    drawn = [line.split(maxsplit=1)[1].strip() for line in lines if line.startswith("node")]
    assert drawn == [row.strip() for row in rows]
    for server, topology in servers.items():
        assert f"{server}: {topology}" in done.stdout


@pytest.mark.parametrize("script", DRAWN)
def test_help_shows_the_command_and_what_it_needs(script: str, echoing: Path):
    shown = run(script, "--help").stdout
    for word in run(echoing / script, RAY_ADDRESS="10.0.0.1:6379").stdout.split():
        assert word in shown
    nodes = int(script[0])
    needs = "one node of 8 GPUs" if nodes == 1 else f"a Ray cluster with {nodes} nodes of 8 GPUs at RAY"
    assert f"Needs {needs}" in shown


@pytest.mark.parametrize("script", DRAWN)
def test_the_users_words_come_after_the_scripts_own(script: str, echoing: Path):
    words = run(echoing / script, "++a=b c", "~d", RAY_ADDRESS="10.0.0.1:6379").stdout.splitlines()
    assert words[-2:] == ["++a=b c", "~d"] and len(words) > 2


@pytest.mark.parametrize("script", [name for name in DRAWN if name[0] != "1"])
def test_several_nodes_without_a_cluster_are_refused_in_one_line(script: str, echoing: Path):
    done = run(echoing / script)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "RAY_ADDRESS" in done.stderr and "scripts/cluster/ssh" in done.stderr


def test_another_model_takes_the_topology():
    done = run("1-node-dp2-tp4", "--dry-run", "+config_paths=[openai/gpt-oss-120b-reasoning-high.yaml]")
    assert "gpt-oss-120b-reasoning-high: DP 2 x TP 4" in done.stdout


def test_an_unknown_option_is_answered_with_those_that_are_known():
    done = run("1-node-tp8", "--bogus")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "1-node-tp8: unknown option '--bogus'; known are --dry-run and --help\n"


def test_without_an_ng_run_the_script_says_how_to_get_one(echoing: Path):
    shutil.rmtree(echoing.parents[1] / ".venv")
    tools = echoing.parents[1] / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "basename"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    done = run(echoing / "1-node-tp8", PATH=str(tools))
    assert done.returncode == 2 and "scripts/setup" in done.stderr


@pytest.mark.parametrize("script", DRAWN)
def test_the_readmes_table_has_the_script(script: str):
    assert f"| `{script}` |" in (ROOT / "README.md").read_text()
