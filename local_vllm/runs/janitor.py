"""Deletes a run's applications from a cluster that it joined, when the run itself cannot any more.

`python -m local_vllm.runs.janitor ADDRESS {shut-down|keep} NAME...` is started by the run and waits for its end. Serve's controller is
detached: without this, the applications of a killed run would stay on somebody else's cluster.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from local_vllm.processes.survivor import Survivor, owner_was_killed

SHUT_DOWN = "shut-down"


def janitor(ray_address: str, applications: Sequence[str], *, shut_down: bool) -> Survivor:
    """Have the applications deleted when this process ends undismissed; Serve too, if it is ours and then empty."""
    return Survivor("local_vllm.runs.janitor", [ray_address, SHUT_DOWN if shut_down else "keep", *applications])


def main() -> None:
    if not owner_was_killed():
        return
    import ray

    from local_vllm.runs.serve_start import remove_applications

    address, then, *names = sys.argv[1:]
    ray.init(address, log_to_driver=False, configure_logging=False)
    remove_applications(names, shut_down=then == SHUT_DOWN)
    ray.shutdown()


if __name__ == "__main__":
    main()
