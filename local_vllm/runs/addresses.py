"""Where the servers of a running `ng_run` answer: from the records on this machine, and from a Ray cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from local_vllm.cluster.machine import reachable_host
from local_vllm.config.client_keys import own_client_key
from local_vllm.config.nearest import did_you_mean
from local_vllm.config.schema import AGENTS, MODELS, GlobalSettings
from local_vllm.errors import RunError
from local_vllm.runs import status
from local_vllm.runs.record import RunRecord, ServerRecord
from local_vllm.runs.session_secret import run_key


@dataclass(frozen=True, slots=True)
class Addresses:
    """The servers that can be asked.

    Attributes:
        servers: name -> the runs that have one of that name.
        root: where http_host and http_port were given: anything below it may be asked.
        key: what the servers are asked with; a run of this user's takes its own key, without one.
    """

    servers: Mapping[str, Sequence[RunRecord]] = field(default_factory=dict)
    root: str = ""
    key: str | None = field(default=None, repr=False)

    def key_of(self, name: str) -> str | None:
        """The key that opens the server called `name`, as far as one is known."""
        runs = self.servers.get(name, ())
        return self.key or (run_key(runs[0].run_id) if runs else None)

    def url_of(self, name: str) -> str:
        """The URL of a server, without a closing slash. Raises RunError when there is none, or several."""
        if self.root:
            return f"{self.root}/{name}"
        runs = self.servers.get(name, ())
        if not runs:
            known = f"; there are {', '.join(self.servers)}" if self.servers else ""
            raise RunError(f"no running ng_run has a server `{name}`{did_you_mean(name, self.servers)}{known}")
        if len(runs) > 1:
            listed = ", ".join(f"{run.title} at {run.serve_url}" for run in runs)
            raise RunError(f"several runs have a server `{name}`: {listed}; choose with +http_port=...")
        return f"{runs[0].serve_url}/{name}"

    def check_agent(self, name: str) -> None:
        """Raises RunError unless `name` is one agent, as far as that is known."""
        self.url_of(name)
        servers = [server for run in self.servers.get(name, ()) for server in run.servers]
        kinds = {server.name: server.kind for server in servers}
        if kinds.get(name, AGENTS) != AGENTS:
            agents = [other for other, kind in kinds.items() if kind == AGENTS]
            there = f"the agents there are {', '.join(agents)}" if agents else "the run has no agent"
            raise RunError(f"`{name}` is one of {kinds[name]}, and rollouts are made by agents: {there}")

    def models_of(self, agents: Iterable[str]) -> tuple[str, ...]:
        """What `models_behind` says of these agents; empty where that is not known."""
        agents = tuple(agents)
        servers = [server for agent in agents for run in self.servers.get(agent, ()) for server in run.servers]
        return models_behind(servers, agents)


def addresses_of(run: RunRecord) -> Addresses:
    """The servers of one run."""
    return _addresses([run])


def living_runs() -> list[RunRecord]:
    """The runs of this user on this machine; of a home that others share too."""
    return [run for run in status.local_runs() if run.host == socket.gethostname() and run.is_alive]


def find_addresses(settings: GlobalSettings) -> Addresses:
    """Where to look for servers: at http_host and http_port where they are given, else at the living runs.

    Raises RunError when nothing runs, and ClusterError when `ray_address` cannot be asked.
    """
    return replace(_find(settings), key=own_client_key(settings))


def _find(settings: GlobalSettings) -> Addresses:
    here = living_runs()
    if {"http_host", "http_port"} & settings.model_fields_set:
        root = f"http://{reachable_host(settings.http_host)}:{settings.http_port}"
        there = [run for run in here if run.serve_url == root]
        return _addresses(there) if there else Addresses(root=root)
    runs = _on_cluster(settings.ray_address, here) if settings.ray_address else here
    if not (serving := [run for run in runs if run.serve_url]):
        where = f"on the cluster at {settings.ray_address}" if settings.ray_address else "on this machine"
        state = "is serving yet" if runs else "is running"
        raise RunError(
            f"no ng_run {state} {where}: start one, give +config_paths=[...] to have the servers brought up, "
            "+ray_address=... for a cluster's, or +http_host=... +http_port=... for one elsewhere"
        )
    return _addresses(serving)


def _on_cluster(address: str, here: Sequence[RunRecord]) -> list[RunRecord]:
    return status.together([run for run in here if run.ray_address == address], status.runs_on_cluster(address))


def _addresses(runs: Sequence[RunRecord]) -> Addresses:
    names = dict.fromkeys(server.name for run in runs for server in run.servers)
    return Addresses({name: [run for run in runs if _has(run, name)] for name in names})


def _has(run: RunRecord, name: str) -> bool:
    return any(server.name == name for server in run.servers)


def models_behind(servers: Iterable[ServerRecord], agents: Iterable[str]) -> tuple[str, ...]:
    """The models that these agents, and the environments that they use, ask; sorted."""
    by_name = {server.name: server for server in servers}
    reached: dict[str, ServerRecord] = {}
    waiting = list(agents)
    while waiting:
        server = by_name.get(name := waiting.pop())
        if server is not None and name not in reached:
            reached[name] = server
            waiting += server.uses
    # A proxy serves the model of a server that it uses.
    serving = (server for server in reached.values() if server.kind == MODELS and not server.uses)
    return tuple(sorted({server.model for server in serving}))
