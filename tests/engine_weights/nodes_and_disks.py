"""A Ray cluster of three nodes on this machine: two share a disk, the third has its own (a mount namespace).

`Driver` is a process on the first node that provides weights as it is told.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from local_vllm.cluster.machine import free_ports
from local_vllm.processes.guarded import Guarded

# The nodes have one address, so each is told by a resource of that name.
FIRST, SHARING, APART = "first", "sharing", "apart"
UP_DEADLINE_S = 90.0

_DRIVER = Path(__file__).with_name("providing_driver.py")


@dataclass(frozen=True, slots=True)
class Nodes:
    """The cluster; `disk` is a folder that is another one on the node APART."""

    address: str
    environment: dict[str, str]
    disk: Path
    apart_pid: int

    def on_apart(self, path: Path | str) -> Path:
        """A path as the node APART sees it."""
        return Path(f"/proc/{self.apart_pid}/root/{str(path).lstrip('/')}")


@contextmanager
def nodes_and_disks(disk: Path) -> Iterator[Nodes]:
    disk.mkdir(parents=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lvw-", dir="/tmp")))
        (folder / "token").write_text(secrets.token_hex(32))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        # All nodes start on the same few cores.
        patience = {"RAY_agent_register_timeout_ms": "120000", "RAY_worker_niceness": "0"}
        environment = inherited | auth | patience | {"XDG_CACHE_HOME": str(disk / "xdg")}
        port, clients = free_ports(2)
        head = [
            "--head",
            f"--port={port}",
            f"--ray-client-server-port={clients}",
            "--include-dashboard=false",
        ]
        join = [f"--address=127.0.0.1:{port}"]
        for name, place, own_disk in ((FIRST, head, None), (SHARING, join, None), (APART, join, disk)):
            guard = stack.enter_context(_ray(name, place, folder, environment, own_disk))
            _wait_until_up(guard, folder / f"{name}.log")
        yield Nodes(f"127.0.0.1:{port}", environment, disk, _inside(guard.pid))


@contextmanager
def _ray(
    name: str, place: list[str], folder: Path, environment: dict[str, str], own_disk: Path | None
) -> Iterator[Guarded]:
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--block", *place, f'--resources={{"{name}": 1}}',
        "--num-gpus=1", "--num-cpus=0", "--disable-usage-stats", "--include-log-monitor=false",
        f"--object-store-memory={80 * 2**20}", f"--dashboard-agent-listen-port={free_ports(1)[0]}",
    ]  # fmt: skip
    if name == FIRST:
        command.append(f"--temp-dir={folder}/ray")
    if own_disk is not None:
        mount = f"mount -t tmpfs -o size=64m tmpfs {own_disk} && exec {shlex.join(command)}"
        command = ["unshare", "--mount", "sh", "-c", mount]
    guard = Guarded(command, env=environment, log_path=folder / f"{name}.log", grace_s=5)
    try:
        yield guard
    finally:
        guard.close()


def _wait_until_up(guard: Guarded, log: Path) -> None:
    deadline = time.monotonic() + UP_DEADLINE_S
    while "Ray runtime started" not in log.read_text():
        assert guard.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def _inside(guard_pid: int) -> int:
    """A process below the guard, which is in the mount namespace of its node."""
    return int(Path(f"/proc/{guard_pid}/task/{guard_pid}/children").read_text().split()[0])


class Driver:
    """A process that is connected to the cluster and provides weights, one order at a time."""

    def __init__(self, nodes: Nodes) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(_DRIVER), nodes.address],
            env=nodes.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, what: str, **arguments: object) -> dict:
        """Tell it to do something; what came of it."""
        self.begin(what, **arguments)
        return json.loads(self.process.stdout.readline())

    def begin(self, what: str, **arguments: object) -> None:
        self.process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
