"""When the janitor of a killed run gives a cluster up, and when it is its turn there."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from local_vllm.cluster.machine import free_ports
from local_vllm.runs import lease, serve_start
from local_vllm.runs.janitor import is_there, remove
from local_vllm.runs.tenancy import SERVE


def test_a_cluster_that_nobody_answers_is_given_up() -> None:
    (port,) = free_ports(1)
    begun = time.monotonic()
    assert not is_there(f"127.0.0.1:{port}", within_s=0.5)
    assert time.monotonic() - begun < 5


def test_a_cluster_that_answers_late_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert is_there(f"127.0.0.1:{server.getsockname()[1]}", within_s=0.5)


async def test_it_takes_applications_away_while_nobody_else_deploys_any(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    @asynccontextmanager
    async def held(name: str, holder: str, **more: object) -> AsyncIterator[None]:
        done.append(name)
        yield
        done.append("given back")

    def remove_applications(names: Sequence[str], *, shut_down: bool) -> None:
        done.append((*names, shut_down))

    monkeypatch.setattr(lease, "lease", held)
    monkeypatch.setattr(serve_start, "remove_applications", remove_applications)
    await remove(["policy_model", "gateway"], shut_down=True)
    assert done == [SERVE, ("policy_model", "gateway", True), "given back"]
