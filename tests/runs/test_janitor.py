"""When the janitor of a killed run gives a cluster up."""

from __future__ import annotations

import socket
import time

from local_vllm.cluster.machine import free_ports
from local_vllm.runs.janitor import is_there


def test_a_cluster_that_nobody_answers_is_given_up() -> None:
    (port,) = free_ports(1)
    begun = time.monotonic()
    assert not is_there(f"127.0.0.1:{port}", within_s=0.5)
    assert time.monotonic() - begun < 5


def test_a_cluster_that_answers_late_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert is_there(f"127.0.0.1:{server.getsockname()[1]}", within_s=0.5)
