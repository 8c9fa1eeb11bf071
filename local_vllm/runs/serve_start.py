"""Ray Serve for a run: started with our settings on a private cluster, shared on one that we joined."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import ray
from ray import serve

from local_vllm.cluster import serve_settings
from local_vllm.cluster.head_node import HeadNode, head_node
from local_vllm.config.schema import GlobalSettings
from local_vllm.errors import ClusterError, ConfigError, RunError
from local_vllm.runs.ingress import http_host_problems
from local_vllm.runs.preflight import check_port

# Serve's controller looks twice a second: an application that was deleted is seen to be on its way out so soon.
SEEN_WITHIN_S = 10.0
LOOK_AGAIN_S = 0.1
# How Ray's documentation names Serve's controller and its namespace.
_CONTROLLER = {"name": "SERVE_CONTROLLER_ACTOR", "namespace": "serve"}


def refuse_taken_names(names: Sequence[str]) -> None:
    """Raise RunError when somebody's application on a shared Serve has one of our names."""
    taken = sorted(set(names) & applications()) if is_serve_running() else []
    if taken:
        raise RunError(f"{', '.join(taken)}: served on this cluster already, by no run of ours; rename the servers here")


def start_serve(settings: GlobalSettings, joined: bool) -> None:
    """Have Serve listen where the settings say; where it runs already, it stays as it is.

    Raises:
        RunError: the port is taken on the head node.
        ClusterError: Serve did not start.
    """
    # Serve tells of each of its steps; the run's own progress does that.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options = {"host": settings.http_host, "port": settings.http_port}
    try:
        if not joined:
            serve.start(http_options=options)
        elif not is_serve_running():
            serve.start(http_options=options, **_settings_on_head(settings))
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise ClusterError(f"Ray Serve could not be started: {error}") from error


def _settings_on_head(settings: GlobalSettings) -> dict[str, object]:
    """The options of `serve.start` for one ingress, on the head node, with our variables."""
    if problems := [*http_host_problems(settings)]:
        raise ConfigError(problems)
    head = head_node()
    variables = head.run(_prepare_head, _serve_folder(head), settings.http_host, settings.http_port)
    return {"proxy_location": "HeadOnly", "controller_options": {"runtime_env": {"env_vars": variables}}}


def _serve_folder(head: HeadNode) -> Path:
    """The folder of HAProxy's sockets on the head node: of the cluster, because Serve outlives the run that starts it."""
    return Path("/tmp") / f"lv-s-{head.node_id[:8]}"


def _prepare_head(folder: Path, host: str, port: int) -> dict[str, str]:
    """Serve's variables, from what the head node has; called there."""
    check_port(host, port)
    # Everybody may write to HAProxy's admin socket; what keeps others away is the folder.
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ClusterError(f"{folder} on Ray's head node belongs to somebody else; remove it")
    return serve_settings.serve_environment_here(folder)


def remove_applications(names: Sequence[str], *, shut_down: bool) -> None:
    """Take our applications away; with `shut_down`, Serve itself too when nobody else uses it.

    Then they are on their way out when this returns, so that the next run to leave knows whether it is the last.
    """
    known = applications()
    for name in names:
        if name in known:
            serve.delete(name, _blocking=False)
    if not shut_down:
        return
    deadline = time.monotonic() + SEEN_WITHIN_S
    while (staying := _that_stay()) & set(names) and time.monotonic() < deadline:
        time.sleep(LOOK_AGAIN_S)
    if not staying - set(names):
        serve.shutdown()
        head = head_node()
        head.run(shutil.rmtree, _serve_folder(head), True)


def is_serve_running() -> bool:
    """Whether somebody has started Serve on this cluster."""
    return any(actor == _CONTROLLER for actor in ray.util.list_named_actors(all_namespaces=True))


def applications() -> set[str]:
    """The names of everybody's applications on this cluster, of those too that are being taken away."""
    return set(serve.status().applications)


def _that_stay() -> set[str]:
    """The same without the latter."""
    known = serve.status().applications
    return {name for name, application in known.items() if application.status != "DELETING"}
