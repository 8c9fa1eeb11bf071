"""Where Ray Serve answers, and which nodes its replicas may be on for that. Pure.

A Serve of ours has one ingress, on the head node of the cluster. Its replicas listen on the same host as it does, each
on its own node, so behind a loopback address they all have to be on the head node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from local_vllm.cluster.machine import reachable_host
from local_vllm.config.schema import GlobalSettings
from local_vllm.errors import Problem, RunError

if TYPE_CHECKING:
    from local_vllm.cluster.head_node import HeadNode

LOOPBACK = ("127.0.0.1", "localhost")
ANY = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Ingress:
    """`url` has neither path nor closing slash; `on_head`: replicas are reached on the head node only."""

    url: str
    on_head: bool


def stated_ingress(settings: GlobalSettings) -> Ingress:
    """Of a Serve on this machine alone, or of one that is nobody's run's and listens where the settings say."""
    return Ingress(f"http://{reachable_host(settings.http_host)}:{settings.http_port}", on_head=False)


def own_ingress(settings: GlobalSettings, head: HeadNode) -> Ingress:
    """Of a Serve that this run starts on a cluster that it has joined.

    Raises:
        RunError: nobody on this node could reach it.
    """
    if settings.http_host in ANY:
        return Ingress(f"http://{head.address}:{settings.http_port}", on_head=False)
    ingress = Ingress(f"http://{settings.http_host}:{settings.http_port}", on_head=True)
    return _reachable(ingress, head, "set ++http_host=0.0.0.0, or start ng_run on the head node")


def shared_ingress(url: str, head: HeadNode) -> Ingress:
    """Of a Serve that another run has started.

    Raises:
        RunError: nobody on this node could reach it.
    """
    ingress = Ingress(url, on_head=urlsplit(url).hostname in LOOPBACK)
    return _reachable(ingress, head, "start the run that is there with ++http_host=0.0.0.0, or this one on the head node")


def _reachable(ingress: Ingress, head: HeadNode, remedy: str) -> Ingress:
    if ingress.on_head and not head.is_here:
        raise RunError(f"Ray Serve listens at {ingress.url} on Ray's head node, {head.address}; this is another: {remedy}")
    return ingress


def http_host_problems(settings: GlobalSettings) -> Iterator[Problem]:
    """What is wrong with `http_host` for a Serve that a run starts."""
    if settings.http_host not in (*LOOPBACK, *ANY):
        yield Problem(
            "http_host",
            f"is {settings.http_host}, and Ray Serve reaches its own replicas through 127.0.0.1: "
            "set 127.0.0.1 for this machine only, or 0.0.0.0 for all addresses",
        )
