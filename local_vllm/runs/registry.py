"""The runs on a cluster, as they tell of themselves in Ray: each has a named actor that ends with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from local_vllm.engine.spec import NAMESPACE
from local_vllm.runs.record import RunRecord

_PREFIX = "run:"
ANSWER_DEADLINE_S = 20.0
# A busy machine takes its time to start an actor's process.
START_DEADLINE_S = 120.0


class PublishedRun:
    """The actor that answers for a run."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record

    def update(self, record: RunRecord) -> None:
        self._record = record

    def record(self) -> RunRecord:
        return self._record


class Registration:
    """This run, for others on the cluster to see; not detached, so it goes with this process."""

    def __init__(self, record: RunRecord) -> None:
        here = ray.get_runtime_context().get_node_id()
        options = {
            "name": f"{_PREFIX}{record.run_id}",
            "namespace": NAMESPACE,
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
        }
        self._actor = ray.remote(PublishedRun).options(**options).remote(record)

    def update(self, record: RunRecord) -> None:
        """Returns at once; updates arrive in the order of the calls."""
        self._actor.update.remote(record)

    def settle(self) -> None:
        """Returns when every update has arrived."""
        ray.get(self._actor.record.remote(), timeout=START_DEADLINE_S)

    def close(self) -> None:
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self._actor)


def published_runs() -> list[RunRecord]:
    """Every living run on the cluster that this process is connected to, oldest first."""
    names = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(_PREFIX)
    ]
    return sorted(_records(names), key=lambda record: (record.begun_at, record.run_id))


def _records(names: Iterable[str]) -> Iterable[RunRecord]:
    for name in names:
        # A run that ends between the two calls is no run any more.
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            yield ray.get(ray.get_actor(name, NAMESPACE).record.remote(), timeout=ANSWER_DEADLINE_S)
