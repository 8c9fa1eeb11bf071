"""Which of vLLM's placement groups are which engine's, while several engines are launched side by side. Pure.

Each `vllm serve` is a job of its own to Ray, so the groups of a job are one engine's, and all that it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from local_vllm.cluster.groups import VLLMGroup
from local_vllm.plan.placement import Placement


@dataclass
class WhoseGroups:
    """What is known of the groups of engines that are launched side by side.

    Attributes:
        waiting: the engines that are being launched and have not found their groups yet.
    """

    waiting: list[Placement] = field(default_factory=list)
    _found: set[str] = field(default_factory=set)

    def jobs(self, placement: Placement, groups: Iterable[VLLMGroup]) -> list[list[VLLMGroup]]:
        """These groups, come since its launch, job by job, where they may be this engine's.

        First those with as many groups as it asks for, as large. Beside other engines it is none but those; alone it
        may have asked for something else than was planned.
        """
        jobs: dict[str, list[VLLMGroup]] = {}
        for group in groups:
            if group.job not in self._found:
                jobs.setdefault(group.job, []).append(group)
        fitting = [its for its in jobs.values() if _fit(placement, its)]
        return fitting if len(self.waiting) > 1 else sorted(jobs.values(), key=lambda its: its not in fitting)

    def find(self, placement: Placement, jobs: Sequence[Sequence[VLLMGroup]]) -> bool:
        """Whether one of these jobs has its groups where the engine was planned. It is that engine's from now on."""
        for groups in jobs:
            if _fit(placement, groups) and gpus_by_node(groups) == placement.gpus_by_node:
                self._found.add(groups[0].job)
                return True
        return False

    def elsewhere(self, placement: Placement, jobs: Sequence[Sequence[VLLMGroup]]) -> dict[str, int]:
        """The GPUs by node of one that has as many or more, is no other engine's, and lies elsewhere; empty without one.

        Its rank 0 is on the planned node in any case: vLLM places it there or ends.
        """
        planned = [waiting.gpus_by_node for waiting in self.waiting]
        for gpus in map(gpus_by_node, jobs):
            is_whole = sum(gpus.values()) >= placement.topology.gpus
            if is_whole and placement.master_node_id in gpus and gpus not in planned:
                return gpus
        return {}


def _fit(placement: Placement, groups: Sequence[VLLMGroup]) -> bool:
    """vLLM makes a group for each data-parallel rank."""
    topology = placement.topology
    return [group.gpus for group in groups] == [topology.world_size] * topology.data_parallel_size


def gpus_by_node(groups: Iterable[VLLMGroup]) -> dict[str, int]:
    """What they hold of each node; nothing for those that wait for room."""
    gpus: Counter[str] = Counter()
    for group in groups:
        gpus.update(group.gpus_by_node)
    return dict(gpus)
