"""Ray Serve for a run: started with our settings on a private cluster, shared on one that we joined."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import ray
from ray import serve

from local_vllm.cluster import machine, serve_settings
from local_vllm.config.schema import GlobalSettings
from local_vllm.errors import RunError

# How Ray's documentation names Serve's controller and its namespace.
_CONTROLLER = {"name": "SERVE_CONTROLLER_ACTOR", "namespace": "serve"}


def refuse_taken_names(names: Sequence[str]) -> None:
    """Raise RunError when somebody's application on a shared Serve has one of our names."""
    taken = sorted(set(names) & running_applications()) if is_serve_running() else []
    if taken:
        raise RunError(f"{', '.join(taken)}: served on this cluster already, by no run of ours; rename the servers here")


def start_serve(settings: GlobalSettings, joined: bool, volatile: Path) -> None:
    """Have Serve listen where the settings say; where it runs already, it stays as it is."""
    # Serve tells of each of its steps; the run's own progress does that.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options = {"host": settings.http_host, "port": settings.http_port}
    if not joined:
        serve.start(http_options=options)
        return
    variables = serve_settings.serve_environment(
        volatile, machine.free_ports(serve_settings.PORTS_NEEDED), machine.cpu_count()
    )
    serve.start(http_options=options, controller_options={"runtime_env": {"env_vars": variables}})


def remove_applications(names: Sequence[str], *, shut_down: bool) -> None:
    """Take our applications away; with `shut_down`, Serve itself too when nobody else uses it."""
    known = running_applications()
    for name in names:
        if name in known:
            serve.delete(name, _blocking=False)
    if shut_down and not known - set(names):
        serve.shutdown()


def is_serve_running() -> bool:
    """Whether somebody has started Serve on this cluster."""
    return any(actor == _CONTROLLER for actor in ray.util.list_named_actors(all_namespaces=True))


def running_applications() -> set[str]:
    """The names of everybody's applications on this cluster."""
    return set(serve.status().applications)
