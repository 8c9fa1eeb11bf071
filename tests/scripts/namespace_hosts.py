"""Hosts made of network namespaces, and a stand-in for `ssh` that runs its command in one of them.

Each host has its own loopback, its own eth0 and its own ports. They share the file system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PREFIX = "lvs"

# What ssh does for the script: a command on a host, with its standard streams. Real ssh also ends when the
# connection does; here the command's standard input is the script's pipe itself.
SSH = """#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        -o) shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
host=$1
shift
exec ip netns exec "{prefix}-$host" sh -c "$*"
"""


def why_not_here() -> str | None:
    """Why this machine cannot make such hosts; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2 (the command `ip`)"
    probe = f"{PREFIX}{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode != 0:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    ip("netns", "del", probe)
    return None


@dataclass(frozen=True, slots=True)
class Hosts:
    """Hosts by address. `tools` goes first on PATH: it has the stand-in."""

    addresses: tuple[str, ...]
    prefix: str
    tools: Path

    def pids(self) -> dict[int, str]:
        """Every process on one of the hosts, with its command line."""
        return {pid: command_line(pid) for address in self.addresses for pid in self.pids_on(address)}

    def pids_on(self, address: str) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", f"{self.prefix}-{address}").split()]


@contextmanager
def namespace_hosts(addresses: Sequence[str], folder: Path) -> Iterator[Hosts]:
    """Hosts with these addresses on one network; gone on the way out, with whatever still runs on them."""
    prefix = f"{PREFIX}{os.getpid()}"
    tools = folder / "tools"
    tools.mkdir()
    (tools / "ssh").write_text(SSH.format(prefix=prefix))
    (tools / "ssh").chmod(0o755)
    hosts = Hosts(tuple(addresses), prefix, tools)
    switch = f"{prefix}-switch"
    try:
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for number, address in enumerate(addresses):
            _connect(f"{prefix}-{address}", address, switch, f"port{number}")
        yield hosts
    finally:
        for pid in hosts.pids():
            subprocess.run(["kill", "-9", str(pid)], capture_output=True)
        for name in (*(f"{prefix}-{address}" for address in addresses), switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _connect(namespace: str, address: str, switch: str, port: str) -> None:
    ip("netns", "add", namespace)
    ip("-n", namespace, "link", "set", "lo", "up")
    ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    ip("-n", switch, "link", "set", port, "master", "bridge", "up")
    ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
    ip("-n", namespace, "link", "set", "eth0", "up")


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:150]
    except OSError:
        return ""


def tool(folder: Path, name: str, body: str) -> None:
    """A command of that name in the folder: a shell script."""
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)
