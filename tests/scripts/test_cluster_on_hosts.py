"""The scripts that bring a Ray cluster up over ssh and in a Slurm job, on whole clusters: what they leave.

The hosts are network namespaces, and `ssh`, `srun` and `scontrol` are stand-ins
that run their command in one of them; Ray is real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespace_hosts import Hosts, namespace_hosts, tool, why_not_here

from local_vllm.cluster.machine import gpu_count

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "scripts/cluster"
SSH, SLURM = CLUSTER / "ssh", CLUSTER / "slurm.sbatch"
UP_DEADLINE_S = 90
GONE_WITHIN_S = 20
HOSTS = ("10.77.61.1", "10.77.61.2")

# The command: what it sees of the cluster, one line of JSON; with `wait` it then waits for a stop.
LOOK = """
import json, os, signal, sys, time
import ray
ray.init(log_to_driver=False, configure_logging=False)
signal.signal(signal.SIGTERM, lambda *_: (print("asked", flush=True), time.sleep(0.5), os._exit(5)))

@ray.remote(num_cpus=0)
def environment():
    return dict(os.environ)

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
nodes = {n["NodeManagerAddress"]: n for n in ray.nodes()}
there = {}
if "look" in sys.argv:
    on = [On(node["NodeID"], soft=False) for node in nodes.values()]
    asked = [environment.options(scheduling_strategy=where).remote() for where in on]
    there = dict(zip(nodes, ray.get(asked)))
gpus = {address: node["Resources"].get("GPU") for address, node in nodes.items()}
print(json.dumps({"gpus": gpus, "here": dict(os.environ), "there": there}), flush=True)
while "wait" in sys.argv:
    time.sleep(0.1)
sys.exit(7)
"""

# One task, on the host that --relative names.
SRUN = """
for word; do
    case $word in
        --relative=*) at=${{word#*=}} ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
command="$*"
set -- {namespaces}
shift "$at"
exec ip netns exec "$1" sh -c "exec $command"
"""
SCONTROL = """
case $2 in
    hostnames) printf '%s\\n' {hosts} ;;
    job) echo "   Command={script} and words" ;;
esac
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if reason := why_not_here():
        pytest.skip(reason)
    if gpu_count():
        pytest.skip("this test counts logical GPUs; this machine has real ones")
    with namespace_hosts(HOSTS, tmp_path) as made:
        (tmp_path / "look.py").write_text(LOOK)
        yield made


@pytest.fixture
def slurm(hosts: Hosts, tmp_path: Path) -> dict[str, str]:
    """The stand-ins, and the variables of a job on both hosts."""
    namespaces = " ".join(f"{hosts.prefix}-{address}" for address in hosts.addresses)
    tool(hosts.tools, "srun", SRUN.format(namespaces=namespaces))
    tool(hosts.tools, "scontrol", SCONTROL.format(hosts=" ".join(hosts.addresses), script=SLURM))
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_GPUS": "16",
        "RAY_ADDRESS": "10.0.0.9:1",
    }


class Script:
    """A cluster script that runs on the hosts."""

    def __init__(self, hosts: Hosts, folder: Path, script: Path, *words: str, **env: str) -> None:
        self.hosts = hosts
        self.output = folder / "output.txt"
        self.folders = set(Path("/tmp").glob("lvc-*"))
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))
        }
        path = f"{hosts.tools}:{os.environ['PATH']}"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [script, "--logical-gpus", "2", *words],
                env=inherited | {"PATH": path, "http_proxy": "http://10.255.255.1:9"} | env,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def seen(self) -> dict:
        """What the command has seen, once it has."""
        end = time.monotonic() + UP_DEADLINE_S
        while time.monotonic() < end and self.process.poll() is None and "\n{" not in self.text():
            time.sleep(0.1)
        lines = [line for line in self.text().splitlines() if line.startswith("{")]
        assert lines, self.text()
        return json.loads(lines[0])

    def left(self) -> list[object]:
        """What is still there of it, a while after its end."""
        end = time.monotonic() + GONE_WITHIN_S
        while time.monotonic() < end and self._left():
            time.sleep(0.1)
        return self._left()

    def _left(self) -> list[object]:
        return [*self.hosts.pids().items(), *(set(Path("/tmp").glob("lvc-*")) - self.folders)]


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, str(folder / "look.py"), *words]


@pytest.mark.engine
@pytest.mark.timeout(200)
def test_over_ssh_a_command_gets_a_whole_cluster_and_a_stop_and_leaves_nothing(hosts: Hosts, tmp_path: Path):
    script = Script(hosts, tmp_path, SSH, "--hosts", ",".join(HOSTS), *command(tmp_path, "look", "wait"))
    seen = script.seen()
    assert seen["gpus"] == dict.fromkeys(HOSTS, 2.0)
    here = seen["here"]
    for address, there in seen["there"].items():
        assert (there["VLLM_HOST_IP"], there["GLOO_SOCKET_IFNAME"]) == (address, "eth0")
        assert (there["RAY_AUTH_MODE"], here["RAY_AUTH_MODE"]) == ("token", "token")
        assert there["RAY_SERVE_ENABLE_HA_PROXY"] == here["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert set(HOSTS) <= set(there["no_proxy"].split(","))
    assert here["RAY_ADDRESS"].startswith(f"{HOSTS[0]}:")
    script.process.send_signal(signal.SIGINT)
    assert script.process.wait(60) == 5
    assert script.text().count("asked") == 1
    assert script.left() == []


@pytest.mark.engine
@pytest.mark.timeout(200)
def test_a_killed_script_leaves_nothing_on_any_host(hosts: Hosts, tmp_path: Path):
    script = Script(hosts, tmp_path, SSH, "--hosts", ",".join(HOSTS), *command(tmp_path, "wait"))
    script.seen()
    assert len(hosts.pids()) > 4
    script.process.kill()
    script.process.wait(10)
    assert script.left() == []
    assert script.text().count("asked") == 1


@pytest.mark.engine
@pytest.mark.timeout(200)
def test_in_a_slurm_job_the_commands_status_becomes_the_jobs(
    hosts: Hosts, slurm: dict[str, str], tmp_path: Path
):
    (tmp_path / "spool").mkdir()
    copy = shutil.copy(SLURM, tmp_path / "spool/slurm_script")  # as Slurm does
    script = Script(hosts, tmp_path, Path(copy), *command(tmp_path), **slurm)
    assert script.process.wait(UP_DEADLINE_S) == 7, script.text()
    assert script.seen()["gpus"] == dict.fromkeys(HOSTS, 2.0)
    assert script.left() == []
