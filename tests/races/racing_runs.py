"""Runs that are started at the same moment on one Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from engine_answers import SERVER
from joined_ray import JoinedRay
from ng_run_process import READY, NgRun, until

from local_vllm.cluster.machine import free_ports

SETTLED_WITHIN_S = 240


@contextmanager
def racers(
    cluster: JoinedRay, folder: Path, size: int, names: Sequence[str] = ("left", "right"), *more: str
) -> Iterator[list[NgRun]]:
    """One run for each name, with an engine of TP=`size`, all started at once; ended in any case."""
    runs = []
    # All ask for the same port: Serve has one, and the first to start it decides.
    port = free_ports(1)[0]
    with ExitStack() as stack:
        for name in names:
            home = folder / name
            home.mkdir(parents=True)
            (home / "server.yaml").write_text(SERVER.format(name=name, key="dummy", size=size))
            words = ["+config_paths=[server.yaml]", f"++http_port={port}", f"++ray_address={cluster.address}", *more]
            run = NgRun(words, home, environment=cluster.environment)
            run.port = port
            stack.callback(run.end)
            runs.append(run)
        yield runs


@contextmanager
def one_run(cluster: JoinedRay, home: Path, *words: str) -> Iterator[NgRun]:
    """A run of its own on the cluster; ended in any case."""
    run = NgRun([*words, f"++ray_address={cluster.address}"], home, environment=cluster.environment)
    try:
        yield run
    finally:
        run.end()


def settled(run: NgRun) -> bool:
    run.processes()
    return READY in run.text() or run.process.poll() is not None


def wait(runs: Sequence[NgRun]) -> None:
    assert until(lambda: all(map(settled, runs)), SETTLED_WITHIN_S), "\n".join(run.text() for run in runs)
