"""What one model server asks for: its parallel sizes, and how vLLM is to pack its data-parallel ranks.

Whether a cluster can hold it is left to placement.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from local_vllm.errors import PlacementError


class PackStrategy(StrEnum):
    """The values of VLLM_RAY_DP_PACK_STRATEGY.

    strict: each rank whole on one node, the same number of ranks on each node
    fill:   each rank whole on one node, every node taken as full as it goes
    span:   one rank over several nodes, every GPU of which it takes
    """

    STRICT = "strict"
    FILL = "fill"
    SPAN = "span"


@dataclass(frozen=True, slots=True)
class Topology:
    """The parallel sizes of one server, by vLLM's own names.

    `data_parallel_size_local` is the user's wish for the number of ranks on the node of rank 0; None leaves
    it to the plan, and span ignores it. Raises PlacementError when a size makes no sense.
    """

    server: str
    data_parallel_size: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    strategy: PackStrategy
    data_parallel_size_local: int | None = None
    prefill_context_parallel_size: int = 1

    def __post_init__(self) -> None:
        for name in (
            "data_parallel_size",
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "prefill_context_parallel_size",
        ):
            if getattr(self, name) < 1:
                raise PlacementError(f"{self.server}: {name} is {getattr(self, name)}; it must be at least 1")
        local = self.data_parallel_size_local
        if local is not None and not 1 <= local <= self.data_parallel_size:
            raise PlacementError(
                f"{self.server}: data_parallel_size_local is {local}; it must be from 1 to "
                f"data_parallel_size, which is {self.data_parallel_size}"
            )

    @property
    def world_size(self) -> int:
        """GPUs of one data-parallel rank."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.prefill_context_parallel_size

    @property
    def gpus(self) -> int:
        """GPUs of the whole server."""
        return self.data_parallel_size * self.world_size

    @property
    def rank_text(self) -> str:
        """The size of one rank as a person writes it: "TP 4", or "TP 4 x PP 2"."""
        sizes = [("TP", self.tensor_parallel_size), ("PP", self.pipeline_parallel_size)]
        sizes.append(("PCP", self.prefill_context_parallel_size))
        shown = [f"{name} {size}" for name, size in sizes if size > 1 or name == "TP"]
        return " x ".join(shown)
