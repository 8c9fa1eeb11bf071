"""This host as a Ray node: its address, its GPUs, a folder of its own, the environment of what runs here."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from local_vllm.cluster import machine, serve_settings
from local_vllm.processes.tree import start_time

FOLDERS = "lvc-"
# An address that nobody has: asking for the way there shows which interface leads out.
SOMEWHERE = "192.0.2.1"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# What of the caller's environment must not reach Ray: a cluster of somebody else's.
FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_TOKEN")


class HostError(Exception):
    """This host cannot be a node as it is; the message is one line."""


@contextmanager
def own_folder() -> Iterator[Path]:
    """A short folder that only this user may read, for sockets, logs and the token; gone on the way out."""
    sweep()
    # Not under TMPDIR: the names of the sockets in it have a limit of 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix=FOLDERS, dir="/tmp"))
    (folder / "owner").write_text(f"{os.getpid()} {start_time(os.getpid())}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove the folders whose process was killed on this host."""
    for folder in Path("/tmp").glob(f"{FOLDERS}*"):
        with contextlib.suppress(OSError, ValueError):
            pid, started = (folder / "owner").read_text().split()
            if folder.stat().st_uid == os.getuid() and str(start_time(int(pid))) != started:
                shutil.rmtree(folder, ignore_errors=True)


def write_token(folder: Path, token: str) -> Path:
    """The cluster's token in a file of mode 600."""
    path = folder / "ray_token"
    path.touch(mode=0o600)
    path.write_text(token)
    return path


def own_address(interface: str | None, peers: tuple[str, ...]) -> str:
    """The address by which the other nodes reach this one.

    It is that of `interface`; else the one from which this host would speak to the first of `peers` that it
    knows; else the one by which ssh came here; else the one of the way out.

    Raises:
        HostError: only loopback was found, or nothing.
    """
    if interface:
        return _address_of(interface)
    by_ssh = os.environ.get("SSH_CONNECTION", "").split()[2:3]
    ways = [*(source_address(peer) for peer in peers), *by_ssh, source_address(SOMEWHERE)]
    for address in ways:
        if address and not is_loopback(address) and ":" not in address:
            return address
    if peers:
        others = ", ".join(peers)
        raise HostError(f"no address was found by which {others} can reach this host: give --interface NAME")
    return "127.0.0.1"


def source_address(host: str) -> str | None:
    """The IPv4 address from which this host would speak to `host`; None without a way to it."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # a datagram socket: nothing is sent
        return probe.getsockname()[0]
    return None


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "0.0.0.0"


def _address_of(interface: str) -> str:
    known = psutil.net_if_addrs()
    for entry in known.get(interface, ()):
        if entry.family == socket.AF_INET:
            return entry.address
    raise HostError(
        f"the interface {interface} has no IPv4 address here; there are {', '.join(sorted(known))}"
    )


def interface_of(address: str) -> str | None:
    """The name of the interface that has `address`."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    return None


def visible_gpus(environment: Mapping[str, str], present: int) -> tuple[int, bool]:
    """How many GPUs to tell Ray of, and whether CUDA_VISIBLE_DEVICES must stay to keep to them.

    A batch system sets it, and vLLM under span indexes past it; it may go where it names all there is.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return present, False
    count = len([device for device in listed.split(",") if device.strip()])
    return count, count < present


def openable_gpus() -> int:
    """NVIDIA devices that this process may open: a device cgroup leaves the names of the others in /dev."""
    devices = [path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()]
    return sum(_opens(path) for path in devices) if devices else machine.gpu_count()


def _opens(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


def environment(folder: Path, message: Mapping[str, object], address: str) -> dict[str, str]:
    """The environment of Ray, and of `ng_run`, on this host: the same settings as in a private cluster."""
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    env |= dict(message["environment"])
    env |= serve_settings.ray_environment(write_token(folder, str(message["token"])))
    env |= serve_settings.serve_environment_here(folder)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    # vLLM's workers on this host take it from here; their own guess follows the way to the internet.
    env["VLLM_HOST_IP"] = address
    interface = interface_of(address)
    if interface and not is_loopback(address):
        # gloo would resolve the host's name, which many a host takes for 127.0.0.1.
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
    return env | without_proxy(env, [address, *map(str, message["hosts"])])


def without_proxy(env: Mapping[str, str], hosts: list[str]) -> dict[str, str]:
    """`no_proxy` in both spellings, with the cluster's own hosts, where a proxy is set."""
    if not any(env.get(name) or env.get(name.upper()) for name in PROXIES):
        return {}
    known = [entry for name in ("no_proxy", "NO_PROXY") for entry in env.get(name, "").split(",") if entry]
    whole = ",".join(dict.fromkeys([*known, "localhost", "127.0.0.1", *hosts]))
    return {"no_proxy": whole, "NO_PROXY": whole}
