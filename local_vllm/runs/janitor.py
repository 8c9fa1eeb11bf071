"""Deletes a run's applications from a cluster that it joined, when the run itself cannot any more.

`python -m local_vllm.runs.janitor ADDRESS NAME...` is started by the run and waits for its end. Serve's controller is
detached: without this, the applications of a killed run would stay on somebody else's cluster.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager

from local_vllm.processes.survivor import owner_was_killed, survivor


def janitor(ray_address: str, applications: Sequence[str]) -> AbstractContextManager[None]:
    """Have the applications deleted if this process dies inside the block."""
    return survivor("local_vllm.runs.janitor", [ray_address, *applications])


def main() -> None:
    if not owner_was_killed():
        return
    import ray
    from ray import serve

    ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)
    for name in sys.argv[2:]:
        serve.delete(name, _blocking=False)
    ray.shutdown()


if __name__ == "__main__":
    main()
