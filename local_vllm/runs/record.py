"""The record of a run on disk: who runs what where, for other commands and for the sweep after a crash."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from local_vllm.plan.cluster import Cluster
from local_vllm.plan.placement import Placement
from local_vllm.processes import members
from local_vllm.processes.tree import start_time

logger = logging.getLogger(__name__)

# Logs of ended runs that are kept.
KEPT_LOGS = 20


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """One server of a run.

    Attributes:
        name, implementation, model, kind: as in the configuration; no model where it is no model server.
        uses: the servers that it refers to.
        url: where it answers, ending in /v1 where it understands Responses.
        state: that of its engine ("starting", "healthy", ...); empty where the engine is not the run's.
        detail: what the engine is doing while it starts, or why it failed.
        engine_url: where the engine answers; empty until it does.
        node_address: the node of the engine's process, as Ray knows it.
        log_path: the engine's log, on that node.
        restarts: how often the engine was started again since it was last well for long.
        max_restarts: after so many it has failed.
        placement: its plan; None without an engine of ours.
    """

    name: str
    implementation: str
    model: str
    url: str
    state: str = ""
    detail: str = ""
    engine_url: str = ""
    node_address: str = ""
    log_path: str = ""
    placement: Placement | None = None
    kind: str = "responses_api_models"
    uses: tuple[str, ...] = ()
    restarts: int = 0
    max_restarts: int = 0


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run. Holds no secret.

    Attributes:
        run_id: eight characters, unique on this machine.
        pid, started: the process of `ng_run`; together they name one process for good.
        volatile: folder with sockets and secrets, which goes with the run.
        logs: folder with the logs of Ray and of each engine, which stays.
        url: where the gateway is.
        serve_url: where Ray Serve listens; empty until it does.
        ray_address: the cluster; private_cluster tells whether it is the run's own.
        serve_is_ours: Serve on that cluster was started by a run of ours, so the last one out ends it.
        applications: names in Ray Serve.
        servers: those of the configuration, in its order.
        cluster: its nodes as they were read when the servers had been placed, with the GPUs left free.
        host: the machine of the run; homes are shared, processes are not.
    """

    run_id: str
    pid: int
    started: int
    begun_at: float
    volatile: str
    logs: str
    url: str = ""
    serve_url: str = ""
    ray_address: str = ""
    private_cluster: bool = True
    serve_is_ours: bool = True
    applications: tuple[str, ...] = ()
    servers: tuple[ServerRecord, ...] = ()
    cluster: Cluster | None = None
    host: str = field(default_factory=socket.gethostname)

    @property
    def is_alive(self) -> bool:
        """Whether its process is there; one in another container of this host, which shares the home, holds its lock."""
        return start_time(self.pid) == self.started or _is_locked(self.run_id)

    @property
    def title(self) -> str:
        """How a person is told of it."""
        return f"run {self.run_id} (pid {self.pid} on {self.host})"


_RECORD = TypeAdapter(RunRecord)


def state_folder() -> Path:
    """Where records and logs are kept, by the XDG convention."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "local_vllm"


@contextmanager
def run_record() -> Iterator[RunRecord]:
    """A new run with its folders. The volatile one goes, and with it the record, when the run is over."""
    run_id = secrets.token_hex(4)
    logs = state_folder() / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{run_id}"
    logs.mkdir(parents=True)
    # Ray's sockets lie below, and a socket's path has at most 107 bytes: TMPDIR could be too long.
    volatile = tempfile.mkdtemp(prefix="lv-", dir="/tmp")
    pid = os.getpid()
    record = RunRecord(run_id, pid, start_time(pid) or 0, time.time(), volatile, str(logs))
    with _locked(run_id):
        write(record)
        try:
            yield record
        finally:
            forget(record)
            _drop_old_logs()


@contextmanager
def _locked(run_id: str) -> Iterator[None]:
    """Hold the lock that goes with this process, where the file system of the home has locks."""
    path = _lock_path(run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            path.unlink(missing_ok=True)
        yield


def _is_locked(run_id: str) -> bool:
    with contextlib.suppress(OSError), open(_lock_path(run_id), "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write(record: RunRecord) -> None:
    """Put the record on disk, whole or not at all."""
    path = _path(record.run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(_RECORD.dump_json(record, indent=1))
    new.replace(path)


def rewrite(record: RunRecord) -> None:
    """`write` for a run that is under way: a full disk must not end it."""
    try:
        write(record)
    except OSError as error:
        logger.warning("the record of run %s is out of date: %s", record.run_id, error)


def forget(record: RunRecord) -> None:
    """Remove the volatile folder and the record of a run that is over, and what its engines have left here."""
    members.end_run(record.run_id)
    shutil.rmtree(record.volatile, ignore_errors=True)
    _path(record.run_id).unlink(missing_ok=True)
    _lock_path(record.run_id).unlink(missing_ok=True)


def keep_serve_logs(record: RunRecord) -> None:
    """Copy what Ray Serve logged on this machine to the logs that stay: for when it is what failed."""
    for folder in Path(record.volatile).glob("ray/session_*/logs/serve"):
        shutil.copytree(folder, Path(record.logs) / "serve", dirs_exist_ok=True, ignore_dangling_symlinks=True)


def records() -> list[RunRecord]:
    """The records of all runs of this user on this machine, living and dead."""
    found = []
    for path in sorted((state_folder() / "runs").glob("*.json")):
        with contextlib.suppress(OSError, ValidationError):
            found.append(_RECORD.validate_json(path.read_bytes()))
    return found


def sweep() -> list[RunRecord]:
    """Clean up after runs that were killed on this machine, and only after them; says which they were."""
    dead = [record for record in records() if record.host == socket.gethostname() and not record.is_alive]
    for record in dead:
        forget(record)
    return dead


def _path(run_id: str) -> Path:
    return state_folder() / "runs" / f"{run_id}.json"


def _lock_path(run_id: str) -> Path:
    return _path(run_id).with_suffix(".lock")


def _drop_old_logs() -> None:
    in_use = {record.logs for record in records()}
    folders = sorted(folder for folder in (state_folder() / "logs").iterdir() if str(folder) not in in_use)
    for folder in folders[:-KEPT_LOGS]:
        shutil.rmtree(folder, ignore_errors=True)
