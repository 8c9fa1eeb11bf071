"""Ray's placement groups: those that hold GPUs for an engine that is still to come, and those that vLLM has made."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from local_vllm.errors import ClusterError
from local_vllm.plan.placement import Placement

# How vLLM names the group of each data-parallel rank.
_VLLM_PREFIX = "dp_rank_"
RESERVE_DEADLINE_S = 10.0
_GONE = "REMOVED"


@dataclass(frozen=True, slots=True)
class VLLMGroup:
    """One of vLLM's groups. `gpus_by_node` is empty until Ray has found room for it."""

    group_id: str
    gpus: int
    gpus_by_node: dict[str, int]

    @property
    def job(self) -> str:
        """The id of the Ray job that made it: such an id is a group's own, and then its job's."""
        return self.group_id[-2 * ray.JobID.size() :]


def vllm_groups() -> dict[str, VLLMGroup]:
    """The living groups of all engines on the cluster, by their id."""
    table = placement_group_table()
    return {
        group_id: _vllm_group(group_id, entry)
        for group_id, entry in table.items()
        if entry["name"].startswith(_VLLM_PREFIX) and entry["state"] != _GONE
    }


def _vllm_group(group_id: str, entry: dict) -> VLLMGroup:
    gpus = {index: int(resources.get("GPU", 0)) for index, resources in entry["bundles"].items()}
    by_node: Counter[str] = Counter()
    for index, node_id in entry["bundles_to_node_id"].items():
        if node_id and gpus[index]:
            by_node[node_id] += gpus[index]
    return VLLMGroup(group_id, sum(gpus.values()), dict(by_node))


class Reservation:
    """The GPUs of some placements, held until vLLM is about to take them. Goes with this process in any case."""

    def __init__(self, placements: Sequence[Placement], run_id: str) -> None:
        """Take them.

        Raises:
            ClusterError: somebody else was faster.
        """
        self._groups: list[PlacementGroup] = []
        try:
            for placement in placements:
                self._groups.append(_reserve(placement, f"local_vllm:{run_id}:{placement.topology.server}"))
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + RESERVE_DEADLINE_S
        for group in self._groups:
            if not group.wait(max(1, int(end - time.monotonic()))):
                raise ClusterError("GPUs that were free when the plan was made were taken meanwhile")

    def close(self) -> None:
        """Give them back; a second call does nothing."""
        while self._groups:
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                remove_placement_group(self._groups.pop())


def _reserve(placement: Placement, name: str) -> PlacementGroup:
    addresses = {slot.node_id: slot.address for rank in placement.ranks for slot in rank.slots}
    # Ray gives every node a resource of this name, so that a bundle can ask for that node.
    bundles = [
        {"GPU": float(gpus), f"node:{addresses[node_id]}": 0.001} for node_id, gpus in placement.gpus_by_node.items()
    ]
    engine_cores = Counter(rank.slots[0] for rank in placement.ranks)
    bundles += [{"CPU": float(count), f"node:{slot.address}": 0.001} for slot, count in engine_cores.items()]
    return placement_group(bundles, strategy="PACK", name=name)

