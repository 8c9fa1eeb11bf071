"""The scripts that bring a Ray cluster up over ssh and in a Slurm job: what they say.

test_cluster_on_hosts.py starts clusters with them.
"""

from __future__ import annotations

import importlib
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from namespace_hosts import tool

from local_vllm.processes.tree import start_time

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "scripts/cluster"
SSH, SLURM = CLUSTER / "ssh", CLUSTER / "slurm.sbatch"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def run(script: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.run(
        [script, *words], capture_output=True, text=True, timeout=60, cwd="/", env=inherited | env
    )


def commands_shown(output: str) -> dict[str, list[str]]:
    """The comment above each command of a dry run, and the command as a shell reads it."""
    lines = output.splitlines()
    return {
        above.removeprefix("# "): shlex.split(line)
        for above, line in zip(lines, lines[1:])
        if above.startswith("# ") and not line.startswith("# ")
    }


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of the scripts' own."""
    monkeypatch.syspath_prepend(CLUSTER / "launcher")
    return importlib.import_module


# What is said on the command line.


@pytest.mark.parametrize("script", [SSH, SLURM], ids=lambda path: path.name)
def test_a_cluster_script_is_executable_and_shellcheck_finds_nothing(script: Path):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if not SHELLCHECK.exists():
        pytest.skip("shellcheck is not installed (pip install 'local_vllm[test]')")
    assert subprocess.run([SHELLCHECK, script], capture_output=True, text=True).stdout == ""


@pytest.mark.parametrize("script", [SSH, SLURM], ids=lambda path: path.name)
def test_help_says_what_is_needed(script: Path):
    done = run(script, "--help")
    assert done.returncode == 0
    assert "Needs: " in done.stdout and "--dry-run" in done.stdout


def test_a_dry_run_over_ssh_shows_a_command_for_each_host_and_draws_the_plan():
    done = run(SSH, "--hosts", "a,me@b", "--dry-run", str(ROOT / "scripts/topologies/2-nodes-tp16-span"))
    shown = commands_shown(done.stdout)
    assert done.returncode == 0, done.stderr
    assert [command[0] for command in shown.values()][:3] == ["ssh"] * 3
    assert "member.py head" in shown["a: Ray's head"][-1] and "a" in shown["a: Ray's head"]
    assert "member.py worker" in shown["b: Ray, joining it"][-1] and "me@b" in shown["b: Ray, joining it"]
    assert "job.py --nodes=2" in shown["a: the command, once all have joined"][-1]
    assert "DP 1 x TP 16, span, 16 GPUs on 2 nodes" in done.stdout


def test_a_dry_run_for_slurm_works_without_slurm():
    done = run(SLURM, "--nodes", "4", "--dry-run", str(ROOT / "scripts/topologies/4-nodes-dp2-tp16-span"))
    shown = commands_shown(done.stdout)
    assert done.returncode == 0, done.stderr
    assert {"--nodes=1", "--relative=0"} <= set(shown["node1: Ray's head"])
    assert {"--nodes=3", "--ntasks=3", "--relative=1"} <= set(shown["node2,node3,node4: Ray, joining it"])
    assert "DP 2 x TP 16, span, 32 GPUs on 4 nodes" in done.stdout


def test_overrides_alone_are_given_to_ng_run():
    done = run(SSH, "--hosts", "a", "--gpus-per-node", "2", "--dry-run", "++http_port=12345")
    assert "ng_run ++http_port=12345 +cluster=1x2 +dry_run=true" in done.stdout
    assert "http://127.0.0.1:12345/v1" in done.stdout


def test_the_status_of_a_plan_that_does_not_fit_is_the_scripts():
    done = run(
        SSH, "--hosts", "a", "--gpus-per-node", "1", "--dry-run", str(ROOT / "scripts/topologies/1-node-tp8")
    )
    assert done.returncode == 1


def test_no_secret_stands_on_a_command_line():
    done = run(SSH, "--hosts", "a,b", "--dry-run", "--env", "MINE=hush-1", HF_TOKEN="hush-2")
    assert done.returncode == 0 and "hush" not in done.stdout


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (SSH, [], "no hosts: give --hosts HOST,HOST,... or --hostfile FILE"),
        (SSH, ["--hosts", "a,b,a"], "a is there twice: a host can be one node"),
        (SSH, ["--hosts=-oProxyCommand=x"], "'-oProxyCommand=x' is no host"),
        (SSH, ["--hostfile", "/no/file"], "--hostfile /no/file cannot be read: No such file or directory"),
        (SLURM, [], "this is no job: submit it with sbatch --nodes=N, or try --dry-run"),
    ],
)
def test_what_cannot_be_started_is_refused_in_one_line(script: Path, words: list[str], message: str):
    done = run(script, *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"cluster: {message}\n")


def test_a_hostfile_has_one_host_a_line_and_comments(tmp_path: Path):
    (tmp_path / "hosts").write_text("# ours\na  # the head\n\nb\n")
    shown = commands_shown(run(SSH, "--hostfile", str(tmp_path / "hosts"), "--dry-run").stdout)
    assert list(shown)[:2] == ["a: Ray's head", "b: Ray, joining it"]


def test_a_host_that_ssh_cannot_reach_ends_the_script(tmp_path: Path):
    tool(tmp_path, "ssh", "echo 'ssh: no route' >&2; exit 255")
    done = run(SSH, "--hosts", "a,b", "true", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "ssh: no route" in done.stderr
    assert "ended with status 255" in done.stderr, "of the head, or of the other host: whichever was seen first"


# What a host makes of itself.


@pytest.mark.parametrize(
    ("listed", "present", "told", "stays"),
    [
        pytest.param(None, 8, 8, False, id="all, and nobody says which"),
        pytest.param("0,1,2,3,4,5,6,7", 8, 8, False, id="all, by a batch system"),
        pytest.param("4,5,6,7", 8, 4, True, id="half of an open node"),
        pytest.param("0,1,2,3", 4, 4, False, id="half of a node that hides the rest"),
        pytest.param("", 8, 0, True, id="none"),
    ],
)
def test_a_batch_systems_choice_of_gpus_is_kept_to(
    part, listed: str | None, present: int, told: int, stays: bool
):
    variables = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert part("host").visible_gpus(variables, present) == (told, stays)


def test_a_proxy_does_not_catch_what_goes_to_the_clusters_hosts(part):
    env = {"http_proxy": "http://proxy", "NO_PROXY": "intern"}
    assert part("host").without_proxy(env, ["a", "10.0.0.1"]) == {
        "no_proxy": "intern,localhost,127.0.0.1,a,10.0.0.1",
        "NO_PROXY": "intern,localhost,127.0.0.1,a,10.0.0.1",
    }
    assert part("host").without_proxy({}, ["a"]) == {}


def test_a_node_never_gives_itself_a_loopback_address(part):
    host = part("host")
    try:
        address = host.own_address(None, ("localhost",))
    except host.HostError as error:
        assert "--interface" in str(error)
    else:
        assert not address.startswith("127.")


def test_the_token_is_in_a_file_that_only_its_owner_reads(part):
    host = part("host")
    with host.own_folder() as folder:
        path = host.write_token(folder, "secret")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_the_folder_of_a_killed_member_is_swept_by_the_next(part):
    host = part("host")
    code = "import host, os; made = host.own_folder(); made.__enter__(); os.kill(os.getpid(), 9)"
    before = set(Path("/tmp").glob("lvc-*"))
    subprocess.run([sys.executable, "-c", code], cwd=CLUSTER / "launcher", capture_output=True)
    left = set(Path("/tmp").glob("lvc-*")) - before
    assert left
    host.sweep()
    assert not any(folder.exists() for folder in left)


def test_a_variable_of_an_engine_is_taken_along_and_an_address_is_not(part):
    taken = part("commands").is_taken_along
    assert all(
        map(taken, ["HF_TOKEN", "NCCL_SOCKET_IFNAME", "VLLM_LOGGING_LEVEL", "https_proxy", "NO_PROXY"])
    )
    assert not any(map(taken, ["VLLM_HOST_IP", "PATH", "SSH_AUTH_SOCK", "RAY_AUTH_TOKEN"]))


# The line between the script and what it starts.


@pytest.fixture
def line(part) -> Iterator[tuple[object, int]]:
    """A lifeline, and the file descriptor that the script would hold."""
    read, write = os.pipe()
    yield part("lifeline").Lifeline(read, silence_s=0.3), write
    os.close(read)


def test_words_come_through_whole_and_signs_of_life_do_not(line):
    lifeline, write = line
    os.write(write, b'{"token": "t"}\nali')
    assert lifeline.message() == {"token": "t"}
    os.write(write, b"ve\nstop\nlost b\n")
    assert lifeline.words(1) == ["stop", "lost b"]
    os.close(write)


def test_a_closed_line_means_that_the_script_is_gone(line, part):
    lifeline, write = line
    os.close(write)
    with pytest.raises(part("lifeline").ScriptGone, match="ended"):
        lifeline.words(5)


def test_silence_means_that_the_script_is_gone(line, part):
    """As when its machine has lost power: no end of the connection is seen then."""
    lifeline, write = line
    with pytest.raises(part("lifeline").ScriptGone, match="nothing was heard"):
        for _ in range(10):
            lifeline.words(0.1)
    os.close(write)


STUBBORN = "trap 'echo asked' TERM; echo begun; while :; do sleep 0.05; done"
# A child of its own process, because what is below that process at the end is killed.
WATCHED = """
import sys, job, lifeline
child = job.Child(sys.argv[1:], {"PATH": "/usr/bin:/bin"}, "/", stop_timeout_s=0.5)
job.KILL_AFTER_S = 0.5
sys.exit(child.watch(lifeline.Lifeline(), on_lost=lambda name: print("lost", name, flush=True)))
"""


@contextmanager
def watched(*command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, *command],
        cwd=CLUSTER / "launcher",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_command_that_will_not_stop_is_asked_twice_and_then_killed():
    with watched("sh", "-c", STUBBORN) as process:
        assert process.stdout.readline() == "begun\n"
        process.stdin.write("stop\n")
        process.stdin.flush()
        assert process.wait(10) == 137
        assert process.stdout.read() == "asked\nasked\n"


def test_a_command_hears_of_a_lost_node_and_goes_on():
    with watched("sh", "-c", "sleep 1; exit 3") as process:
        process.stdin.write("lost b\n")
        process.stdin.flush()
        assert process.wait(10) == 3
        assert process.stdout.read() == "lost b\n"


def test_nothing_below_a_command_outlives_it():
    with watched("sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!") as process:
        pid = int(process.stdout.readline())
        assert process.wait(10) == 0
        assert start_time(pid) is None
