"""`member.py head|worker ...`: this host's Ray node, started by a cluster script and ended with it.

The script's message comes through standard input (lifeline.py). A head answers with its address as JSON.
What the script starts on the cluster once all nodes have joined is job.py's part.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import host
from lifeline import Lifeline, ScriptGone, exit_on_signals

from local_vllm.cluster import machine
from local_vllm.processes.guarded import Guarded

UP_DEADLINE_S = 90.0
GRACE_S = 5.0
POLL_S = 0.2
ATTEMPTS = 3
# Logical CPUs beyond one for each GPU: vLLM waits for ever for a rank's CPU, and small actors take some.
SPARE_CPUS = 16
OBJECT_STORE_BYTES_WITHOUT_GPU = 512 * 2**20


class RayEnded(Exception):
    """`ray start` ended or did not come up; the message has the last lines of what it printed."""


@dataclass(frozen=True, slots=True)
class Node:
    """This host as the node that it is about to be."""

    folder: Path
    address: str
    gpus: int
    has_real_gpus: bool
    environment: Mapping[str, str]

    @property
    def log(self) -> Path:
        return self.folder / "ray-start.log"


def main() -> int:
    asked = arguments()
    exit_on_signals()
    try:
        run(asked, Lifeline())
    except ScriptGone:
        return 0  # how every cluster ends; there is nobody left to tell
    except (host.HostError, RayEnded) as error:
        say(asked.name, str(error))
        return 1
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="member.py", description=__doc__)
    parser.add_argument("role", choices=("head", "worker"))
    parser.add_argument("--name", default=socket.gethostname(), help="how messages call this host")
    parser.add_argument("--interface", help="the network interface to use")
    parser.add_argument("--logical-gpus", type=int, help="GPUs to pretend to have")
    parser.add_argument("--keep-logs", action="store_true", help="keep Ray's logs in /tmp")
    return parser.parse_args()


def run(asked: argparse.Namespace, lifeline: Lifeline) -> None:
    """Be a node until the script ends.

    Raises:
        ScriptGone: the script has ended, and so has the node.
        HostError, RayEnded: this host could not be a node, or is none any more.
    """
    message = lifeline.message()
    with host.own_folder() as folder:
        node = this_node(asked, message, folder)
        try:
            if asked.role == "head":
                be_head(node, lifeline)
            else:
                be_worker(node, message["head"], lifeline)
        finally:
            if asked.keep_logs:
                keep_logs(asked.name, folder)


def this_node(asked: argparse.Namespace, message: Mapping[str, Any], folder: Path) -> Node:
    """What this host has, and what it is told to have."""
    peers = message["hosts"] if asked.role == "head" else [message["head"].rpartition(":")[0]]
    address = host.own_address(asked.interface, [peer for peer in peers if peer != asked.name])
    environment = host.environment(folder, message, address)
    present = host.openable_gpus()
    if asked.logical_gpus is not None:
        if present:
            raise host.HostError(f"--logical-gpus is for hosts without GPUs; this one has {present}")
        return Node(folder, address, asked.logical_gpus, False, environment)
    gpus, only_some = host.visible_gpus(environment, present)
    if only_some:
        ours = f"{gpus} of {present} GPUs are ours"
        say(asked.name, f"{ours}: CUDA_VISIBLE_DEVICES stays, and span cannot be used")
    else:
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    return Node(folder, address, gpus, gpus > 0, environment)


def be_head(node: Node, lifeline: Lifeline) -> None:
    """Start the cluster, tell its address, and hold it open."""
    port, client, agent = machine.free_ports(3)
    options = ["--head", f"--port={port}", f"--ray-client-server-port={client}", "--include-dashboard=false"]
    with ray_started(node, [*options, f"--dashboard-agent-listen-port={agent}"]) as ray:
        deadline = time.monotonic() + UP_DEADLINE_S
        while not answers(node.address, port):
            stay(node, ray, lifeline)
            if time.monotonic() > deadline:
                where = f"{node.address}:{port}"
                raise RayEnded(f"Ray did not answer at {where} within {UP_DEADLINE_S:.0f} s{tail(node)}")
        print(json.dumps({"address": f"{node.address}:{port}"}), flush=True)
        while True:
            stay(node, ray, lifeline)


def be_worker(node: Node, head: str, lifeline: Lifeline) -> None:
    """Join the cluster at `head`, and stay."""
    (agent,) = machine.free_ports(1)
    with ray_started(node, [f"--address={head}", f"--dashboard-agent-listen-port={agent}"]) as ray:
        while True:
            stay(node, ray, lifeline)


@contextmanager
def ray_started(node: Node, options: list[str]) -> Iterator[Guarded]:
    """`ray start --block` under the guard: it ends with this process, and everything below it."""
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--block",
        *options,
        f"--node-ip-address={node.address}",
        f"--temp-dir={node.folder / 'ray'}",
        f"--num-gpus={node.gpus}",
        f"--num-cpus={max(machine.cpu_count(), node.gpus + SPARE_CPUS)}",
        # Free ones of the kernel's: the default range is the same for every cluster on this host.
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--disable-usage-stats",
    ]
    if not node.has_real_gpus:
        command.append(f"--object-store-memory={OBJECT_STORE_BYTES_WITHOUT_GPU}")
    ray = Guarded(command, env=node.environment, log_path=node.log, grace_s=GRACE_S)
    try:
        yield ray
    finally:
        ray.close()


def stay(node: Node, ray: Guarded, lifeline: Lifeline) -> None:
    """One look at both ends.

    Raises:
        ScriptGone, RayEnded: one of them is no more.
    """
    lifeline.words(POLL_S)
    if (status := ray.poll()) is not None:
        raise RayEnded(f"Ray ended with status {status}{tail(node)}")


def answers(address: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def tail(node: Node, lines: int = 15) -> str:
    with contextlib.suppress(OSError):
        printed = node.log.read_text(errors="replace").splitlines()
        return "\n".join(["; the last it printed:", *printed[-lines:]])
    return ""


def keep_logs(name: str, folder: Path) -> None:
    """Copy what Ray logged here to where it stays, and say where."""
    kept = Path(f"/tmp/local_vllm-ray-logs-{os.getpid()}")
    for logs in (folder / "ray").glob("session_2*/logs"):
        shutil.copytree(logs, kept, ignore_dangling_symlinks=True, dirs_exist_ok=True)
    with contextlib.suppress(OSError):  # the connection may be what has ended
        say(name, f"Ray's logs are in {kept}")


def say(name: str, what: str) -> None:
    print(f"{name}: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
