"""Which variables of `vllm serve` reach its processes on Ray, on every node. Pure.

vLLM copies those that begin like its own, and those that another variable names: that one is written here.
"""

from __future__ import annotations

from collections.abc import Mapping

from local_vllm.engine.node_network import SWITCH
from local_vllm.processes.members import FOLDER

NAMES = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"


def worker_variables(configured: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    """Variables for `vllm serve`: whatever is configured for it holds for its workers too, OMP_NUM_THREADS say."""
    listed = configured.get(NAMES) or inherited.get(NAMES) or ""
    wanted = {SWITCH, FOLDER, *map(str.strip, listed.split(",")), *configured} - {""}
    return {SWITCH: "1", NAMES: ",".join(sorted(name for name in wanted if not name.startswith("VLLM_")))}
