"""A Ray cluster on this machine that runs join, as somebody else would have started it: by `ray start`, with a token,
without any setting of ours for Serve."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ng_run_process import until

from local_vllm.cluster.machine import free_ports
from local_vllm.processes.guarded import Guarded

UP_DEADLINE_S = 90


@dataclass(frozen=True, slots=True)
class JoinedRay:
    """Where it is, and the variables by which a process may join."""

    address: str
    environment: Mapping[str, str]

    def ask(self, code: str) -> str:
        """What `code` prints, connected to the cluster."""
        connect = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)\n"
        done = subprocess.run(
            [sys.executable, "-c", connect + code, self.address],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.stdout or done.stderr

    def gpus_free(self) -> int:
        answer = self.ask("from local_vllm.cluster.nodes import read_cluster; print(read_cluster().gpus_free)")
        return int(answer)

    def named_actors(self) -> str:
        return self.ask("print(sorted(a['name'] for a in ray.util.list_named_actors(all_namespaces=True)))").strip()


@contextmanager
def joined_ray(gpus: int, **more: str) -> Iterator[JoinedRay]:
    """A head with so many logical GPUs; `more` are further variables of its processes."""
    with tempfile.TemporaryDirectory(prefix="lvj-", dir="/tmp") as folder:
        token = Path(folder, "token")
        token.write_text(secrets.token_hex(32))
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), **more}
        port, clients, agent = free_ports(3)
        command = [Path(sys.executable).parent / "ray", "start", "--head", "--block", f"--port={port}"]
        command += [f"--num-gpus={gpus}", "--num-cpus=64", "--include-dashboard=false", "--disable-usage-stats"]
        command += [f"--temp-dir={folder}/ray", f"--object-store-memory={128 * 2**20}"]
        command += [f"--ray-client-server-port={clients}", f"--dashboard-agent-listen-port={agent}"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        log = Path(folder, "ray.log")
        guard = Guarded(list(map(str, command)), env=inherited | auth, log_path=log, grace_s=10)
        try:
            up = until(lambda: "Ray runtime started" in log.read_text() or guard.poll() is not None, UP_DEADLINE_S)
            assert up and guard.poll() is None, log.read_text()
            cluster = JoinedRay(f"127.0.0.1:{port}", auth)
            assert until(lambda: cluster.ask("print('up')").strip() == "up", UP_DEADLINE_S), cluster.ask("")
            yield cluster
        finally:
            guard.close()
