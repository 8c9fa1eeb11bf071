"""A Ray cluster whose nodes are network namespaces of this machine, joined by one bridge: each node has its own
loopback, its own interface and its own ports, and reaches the others by their addresses only.

What runs on the cluster is left to the tests. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from local_vllm.processes import tree
from local_vllm.processes.guarded import Guarded

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# Namespaces and devices of tests begin with this; the pid that follows says whose they are.
PREFIX = "lvt"
HEAD = "head"
RAY_PORT = 6399
OBJECT_STORE_BYTES = 80 * 2**20
LOGICAL_CPUS = 8
UP_DEADLINE_S = 180.0
# Ray gives up on a node that takes half a minute to start, as each of many would on the same few cores.
AT_ONCE = 2
GRACE_S = 5.0
STARTED = "Ray runtime started"

# Nobody is there: what goes through it fails.
DEAD_PROXY = "http://10.255.255.1:9"
DEAD_PROXIES = {
    name: DEAD_PROXY for lower in ("http_proxy", "https_proxy", "all_proxy") for name in (lower, lower.upper())
}


def why_not_here() -> str | None:
    """Why this machine cannot make namespaces; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2 (the command `ip`)"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode != 0:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return None


@dataclass(frozen=True, slots=True)
class Node:
    """One node: a namespace, and the name and address of its interface. Neighbours have differently named ones."""

    name: str
    namespace: str
    interface: str
    address: str
    gpus: int

    @property
    def prefix(self) -> list[str]:
        """The words that run a command on this node."""
        return ["ip", "netns", "exec", self.namespace]

    def pids(self) -> set[int]:
        """The processes that run on this node."""
        return set(map(int, _ip("netns", "pids", self.namespace).split()))

    def run(self, *command: str) -> str:
        """What a command prints there."""
        return subprocess.run([*self.prefix, *command], capture_output=True, text=True, timeout=60, check=True).stdout

    def call(self, work: Callable[..., T], *arguments: object) -> T:
        """What `work` returns in a thread of this process whose connections begin on this node."""
        with ThreadPoolExecutor(1, initializer=self._enter) as thread:
            return thread.submit(work, *arguments).result()

    def _enter(self) -> None:
        with open(f"/run/netns/{self.namespace}") as namespace:
            if _libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"the namespace {self.namespace} cannot be entered")


@dataclass(frozen=True, slots=True)
class NamespaceCluster:
    """Nodes by name, with Ray up on all of them. `here` is this process's own address on the nodes' network."""

    nodes: Mapping[str, Node]
    here: str
    folder: Path

    @property
    def head(self) -> Node:
        return self.nodes[HEAD]

    @property
    def ray_address(self) -> str:
        return f"{self.head.address}:{RAY_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to join, and what must not disturb it."""
        return _environment(self.folder)

    def ask_ray(self, code: str) -> str:
        """What `code` prints, run on the head node, connected to the cluster."""
        return _run(self.head, [sys.executable, "-c", _CONNECT + code, self.ray_address], self.folder)


_CONNECT = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)\n"
_ALIVE = "print('alive', *sorted(n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']))"


@contextmanager
def namespace_cluster(gpus: Mapping[str, int]) -> Iterator[NamespaceCluster]:
    """Bring nodes with so many logical GPUs up, the node called HEAD first; all is gone on the way out."""
    sweep()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PREFIX}-", dir="/tmp")))
        (folder / "ray_token").write_text(secrets.token_hex(32))
        nodes, here = stack.enter_context(_network(gpus))
        cluster = NamespaceCluster(nodes, here, folder)
        guards: dict[str, Guarded] = {}
        for name, node in _head_first(nodes):
            guards[name] = stack.enter_context(_ray(cluster, node))
            _wait_until_started(cluster, guards, AT_ONCE)
        _wait_until_up(cluster, guards)
        yield cluster


def _head_first(nodes: Mapping[str, Node]) -> list[tuple[str, Node]]:
    return sorted(nodes.items(), key=lambda item: item[0] != HEAD)


@contextmanager
def _network(gpus: Mapping[str, int]) -> Iterator[tuple[dict[str, Node], str]]:
    """One bridge, and a namespace with an eth0 on it for each node."""
    me = f"{os.getpid()}-{tree.start_time(os.getpid())}"
    bridge, net = f"{PREFIX}b{os.getpid()}", _free_network()
    names = sorted(gpus, key=lambda name: name != HEAD)
    nodes = {
        name: Node(name, f"{PREFIX}-{me}-{name}", f"eth{number % 2}", f"{net}.{number}", gpus[name])
        for number, name in enumerate(names, start=1)
    }
    with ExitStack() as undo:
        _ip("link", "add", bridge, "type", "bridge")
        undo.callback(_ip, "link", "del", bridge)
        _ip("address", "add", f"{net}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number, node in enumerate(nodes.values()):
            _ip("netns", "add", node.namespace)
            undo.callback(_ip, "netns", "del", node.namespace)
            outer_end = f"{PREFIX}{os.getpid()}n{number}"
            _wire(node, bridge, outer_end)
            # By name: with its namespace it would go some time later, and the next cluster has the same names.
            undo.callback(_ip, "link", "del", outer_end)
        yield nodes, f"{net}.254"


def _wire(node: Node, bridge: str, outer_end: str) -> None:
    _ip("link", "add", outer_end, "type", "veth", "peer", "name", node.interface, "netns", node.namespace)
    _ip("link", "set", outer_end, "master", bridge, "up")
    _ip("-n", node.namespace, "address", "add", f"{node.address}/24", "dev", node.interface)
    _ip("-n", node.namespace, "link", "set", "lo", "up")
    _ip("-n", node.namespace, "link", "set", node.interface, "up")


def _free_network() -> str:
    """The first three numbers of a network that this machine does not have (another test may run beside this one)."""
    taken = _ip("-4", "-oneline", "address")
    return next(net for number in range(77, 250) if f" {(net := f'10.77.{number}')}." not in taken)


@contextmanager
def _ray(cluster: NamespaceCluster, node: Node) -> Iterator[Guarded]:
    """Ray on one node, under a guard: it ends with this process, whatever happens to it."""
    place = [f"--address={cluster.ray_address}"]
    if node.name == HEAD:
        place = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"]
    command = [
        *node.prefix, str(Path(sys.executable).parent / "ray"), "start", "--block", *place,
        f"--node-ip-address={node.address}", f"--num-gpus={node.gpus}", f"--num-cpus={LOGICAL_CPUS}",
        f"--temp-dir={cluster.folder / node.name}", f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--include-log-monitor=false", "--disable-usage-stats",
    ]  # fmt: skip
    guard = Guarded(
        command, env=_environment(cluster.folder), log_path=cluster.folder / f"{node.name}.log", grace_s=GRACE_S
    )
    try:
        yield guard
    finally:
        guard.close()


def _environment(folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return inherited | DEAD_PROXIES | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "ray_token"),
        "RAY_worker_niceness": "0",
        # As on the clusters that we start.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "10000",
        "RAY_health_check_failure_threshold": "3",
        # All nodes start on the same few cores.
        "RAY_agent_register_timeout_ms": "120000",
    }


def _wait_until_started(cluster: NamespaceCluster, guards: Mapping[str, Guarded], at_once: int) -> None:
    """Return once fewer than `at_once` of the nodes are still starting; once the head has started, in any case."""
    deadline = time.monotonic() + UP_DEADLINE_S
    while time.monotonic() < deadline:
        starting = [name for name in guards if STARTED not in _log_of_a_living(name, cluster, guards)]
        if len(starting) < at_once and HEAD not in starting:
            return
        time.sleep(0.1)
    raise TimeoutError(f"Ray has not started on {', '.join(starting)} after {UP_DEADLINE_S:.0f} s")


def _log_of_a_living(name: str, cluster: NamespaceCluster, guards: Mapping[str, Guarded]) -> str:
    log = (cluster.folder / f"{name}.log").read_text(errors="replace")
    assert guards[name].poll() is None, f"Ray has ended on {name}:\n{log}"
    return log


def _wait_until_up(cluster: NamespaceCluster, guards: Mapping[str, Guarded]) -> None:
    """Return once Ray knows every node by its address."""
    wanted = sorted(node.address for node in cluster.nodes.values())
    deadline, seen = time.monotonic() + UP_DEADLINE_S, "nothing"
    while time.monotonic() < deadline:
        for name in guards:
            _log_of_a_living(name, cluster, guards)
        # Ray itself would try for a minute to reach a head that is not there yet.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            socket.create_connection((cluster.head.address, RAY_PORT), timeout=1).close()
            seen = cluster.ask_ray(_ALIVE)
            if seen.split()[1:] == wanted:
                return
        time.sleep(0.5)
    raise TimeoutError(f"the nodes {wanted} were not up after {UP_DEADLINE_S:.0f} s; Ray knew of: {seen}")


def sweep() -> None:
    """Remove what tests have left that were killed; those of living tests stay."""
    for name in re.findall(rf"^{PREFIX}-\S+", _ip("netns", "list"), re.MULTILINE):
        _, pid, started, *_ = name.split("-")
        if str(tree.start_time(int(pid))) != started:
            _ip("netns", "del", name)
    for name in re.findall(rf"({PREFIX}b\d+):", _ip("-oneline", "link", "show", "type", "bridge")):
        if tree.start_time(int(name.removeprefix(f"{PREFIX}b"))) is None:
            _ip("link", "del", name)


def _run(node: Node, command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(
        [*node.prefix, *command], env=_environment(folder), capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"
    return done.stdout
