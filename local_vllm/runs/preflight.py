"""What can be found wrong on this machine before anything is started."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import psutil

from local_vllm.cluster import machine
from local_vllm.config.client_keys import access_problems
from local_vllm.config.schema import RunConfig
from local_vllm.errors import ClusterError, ConfigError, Problem, RunError
from local_vllm.runs.engine_specs import local_servers
from local_vllm.runs.ingress import http_host_problems

CONNECT_DEADLINE_S = 5.0


def joined_address(config: RunConfig) -> str | None:
    """The cluster to join; None for a private one."""
    return config.settings.ray_address or os.environ.get("RAY_ADDRESS") or None


def check_machine(config: RunConfig) -> None:
    """Raise what stands in the way of this run here.

    Raises:
        ConfigError: the configuration does not suit this machine.
        RunError: somebody else has the port.
    """
    address = joined_address(config)
    access = access_problems(config.settings, config.settings.http_host)
    private = () if address else http_host_problems(config.settings)
    if problems := [*_missing_engine(config), *logical_gpus_problems(config), *access, *private]:
        raise ConfigError(problems)
    if address:
        check_cluster(address)
    else:
        check_port(config.settings.http_host, config.settings.http_port)


def _missing_engine(config: RunConfig) -> Iterator[Problem]:
    if local_servers(config) and machine.engine_kind() is None:
        wanted = "gpu" if machine.gpu_count() else "cpu"
        yield Problem("", f"no vLLM is installed in this Python: pip install 'local_vllm[{wanted}]'")


def logical_gpus_problems(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with `logical_gpus` where nothing could obey it."""
    if config.settings.logical_gpus is None:
        return
    if found := machine.gpu_count():
        yield Problem("logical_gpus", f"this machine has {found} real GPUs; remove the key to use them")
    if joined_address(config):
        yield Problem("logical_gpus", "is for a private cluster; the one to be joined has its own GPUs")


def check_cluster(address: str) -> None:
    """Raise ClusterError at once when nobody listens at `host:port`; Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_DEADLINE_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} (from ray_address or RAY_ADDRESS): {error.strerror or error}; "
            "start one there, or leave both unset for a private cluster"
        ) from error


def check_port(host: str, port: int) -> None:
    """Raise RunError, naming the holder, when `host:port` is taken."""
    if not machine.is_port_free(host, port):
        raise RunError(f"{host}:{port} is taken by {port_holder(port)}; free it, or set ++http_port=<another>")


def port_holder(port: int) -> str:
    """Who listens on `port`, as far as this user may see."""
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another process"
