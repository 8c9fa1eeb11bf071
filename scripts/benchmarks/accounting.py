"""The CPU time, user and system, of processes and of everything below them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

import psutil

API_SERVER, ENGINE = "API server", "engine"
ENGINE_PROCESSES = ("ray::EngineCoreActor", "ray::RayWorkerProc", "VLLM::")
# (pid, time of its creation) -> (role, seconds of CPU so far).
Snapshot = Mapping[tuple[int, float], tuple[str, float]]


def snapshot(roots: Iterable[int]) -> Snapshot:
    """What each of `roots` and every living process below them has used so far."""
    found = {}
    for process in _tree(roots):
        with suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid, process.create_time()] = (role(process.cmdline()), times.user + times.system)
    return found


def _tree(roots: Iterable[int]) -> Iterator[psutil.Process]:
    for pid in roots:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            yield from (root, *root.children(recursive=True))


def role(words: list[str]) -> str:
    """Whose work it is, by the command line: HAProxy's, that of a replica that answers HTTP, that of vLLM's API server,
    that of the engine behind it, or another's."""
    line = " ".join(words)
    if line.startswith("ray::ServeReplica"):
        return "replica"
    if "haproxy" in line.split(" ")[0]:
        return "HAProxy"
    if " -m vllm." in line or line.startswith("VLLM::APIServer"):
        return API_SERVER
    return ENGINE if line.startswith(ENGINE_PROCESSES) else "other"


def used(before: Snapshot, after: Snapshot) -> Counter:
    """Seconds by role; a process that began in between counts whole."""
    seconds: Counter = Counter()
    for process, (name, total) in after.items():
        seconds[name] += total - before.get(process, (name, 0.0))[1]
    return seconds


def idle_rates(roots: Iterable[int], seconds: float) -> Counter:
    """Seconds of CPU in a second in which nothing is asked, by role."""
    roots = list(roots)
    before, begun = snapshot(roots), time.perf_counter()
    time.sleep(seconds)
    took = time.perf_counter() - begun
    return Counter({name: total / took for name, total in used(before, snapshot(roots)).items()})


def without_idle(seconds: Counter, rates: Mapping[str, float], took_s: float) -> Counter:
    """What is left when the work that would have been done anyway is taken off."""
    net = Counter(seconds)
    net.subtract({name: rate * took_s for name, rate in rates.items()})
    return net
