"""Tells every vLLM process on Ray the address and the network interface by which Ray knows its node.

By itself vLLM takes the address of the route to the internet, and gloo the one of the host name: on many machines
neither is the one that the other nodes reach, and the second is often loopback. vLLM imports this as a plugin in
each process that it starts, so it imports little; and so it is where each process of an engine makes itself known.
"""

from __future__ import annotations

import os
import sys

import psutil

from local_vllm.processes.members import enlist

SWITCH = "LOCAL_VLLM_NODE_NETWORK"
"""Set to 1 to switch this on. It has to be named to vLLM, which copies only some variables to its Ray workers."""


def register() -> None:
    """Set what nobody has set. None is also the answer of a platform plugin that brings no platform.

    The plugins of platforms are the first that vLLM calls, before it makes any process group.
    """
    enlist()
    ray = sys.modules.get("ray")
    if os.environ.get(SWITCH) != "1" or ray is None or not ray.is_initialized():
        return
    address = ray.util.get_node_ip_address()
    os.environ.setdefault("VLLM_HOST_IP", address)
    if interface := interface_of(address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def interface_of(address: str) -> str | None:
    """The name of this machine's interface that has `address`; None if none has, as behind a translated address."""
    for name, addresses in psutil.net_if_addrs().items():
        # The address of an IPv6 link names its interface after a percent sign.
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            return name
    return None
