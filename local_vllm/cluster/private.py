"""A Ray cluster of this run alone, on this machine: started under a guard, gone when the run is."""

from __future__ import annotations

import json
import os
import secrets
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local_vllm.cluster import serve_settings
from local_vllm.errors import ClusterError
from local_vllm.processes.guarded import Guarded

HEAD_GRACE_S = 4.0
OBJECT_STORE_BYTES_WITHOUT_GPU = 512 * 2**20


@dataclass(frozen=True, slots=True)
class PrivateCluster:
    """A cluster that is coming up: the variables its processes share, the guard that ends it, and its log."""

    environment: dict[str, str]
    guard: Guarded
    log_path: Path

    def address(self, deadline_s: float = 60.0) -> str:
        """Where it is, as soon as it is up.

        Raises:
            ClusterError: it ended, or was not up at the deadline.
        """
        return _read_address(self.guard, self.log_path, deadline_s)


@contextmanager
def private_cluster(
    run_dir: Path, log_path: Path, *, logical_gpus: int | None, cpus: int
) -> Iterator[PrivateCluster]:
    """Start Ray on this machine, without waiting for it, and end it, with all its processes, on the way out.

    Args:
        run_dir: a short path (its sockets' names have a limit of 107 bytes), private to the user.
        log_path: file for what the head process prints.
        logical_gpus: GPUs to pretend to have; None: use the real ones.
        cpus: logical CPUs, at least one for each data-parallel rank and some for Serve.
    """
    token_path = run_dir / "ray_token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32))
    environment = {
        **serve_settings.ray_environment(token_path),
        **serve_settings.serve_environment_here(run_dir),
        **serve_settings.SHORTCUT,
    }
    options: dict[str, object] = {"num_cpus": cpus, "_temp_dir": str(run_dir / "ray")}
    if logical_gpus is not None:
        options |= {"num_gpus": logical_gpus, "object_store_memory": OBJECT_STORE_BYTES_WITHOUT_GPU}
    command = [sys.executable, "-m", "local_vllm.cluster.head", json.dumps(options)]
    guard = Guarded(
        command, env=_without_ray_address() | environment, log_path=log_path, grace_s=HEAD_GRACE_S, keep_stdout=True
    )
    try:
        yield PrivateCluster(environment, guard, log_path)
    finally:
        guard.close()


def _without_ray_address() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def _read_address(guard: Guarded, log_path: Path, deadline_s: float) -> str:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        ready, _, _ = select.select([guard.stdout], [], [], 0.2)
        if ready and (line := guard.stdout.readline()).startswith(b"{"):
            return json.loads(line)["address"]
        if guard.poll() is not None:
            raise ClusterError(f"Ray ended while it was starting; its output is in {log_path}:\n{_tail(log_path)}")
    raise ClusterError(f"Ray was not up after {deadline_s:.0f} s; its output is in {log_path}:\n{_tail(log_path)}")


def _tail(path: Path, lines: int = 12) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
