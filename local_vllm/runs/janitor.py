"""Deletes a run's applications from a cluster that it joined, when the run itself cannot any more.

`python -m local_vllm.runs.janitor ADDRESS {shut-down|keep} NAME...` is started by the run and waits for its end. Serve's controller is
detached: without this, the applications of a killed run would stay on somebody else's cluster.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence

from local_vllm.errors import ClusterError
from local_vllm.processes.survivor import Survivor, owner_was_killed

SHUT_DOWN = "shut-down"
# A cluster that nobody answers for so long is gone, and the applications with it.
ANSWERS_WITHIN_S = 60.0
ENDS_WITHIN_S = 300


def janitor(ray_address: str, applications: Sequence[str], *, shut_down: bool) -> Survivor:
    """Have the applications deleted when this process ends undismissed; Serve too, if it is ours and then empty."""
    return Survivor("local_vllm.runs.janitor", [ray_address, SHUT_DOWN if shut_down else "keep", *applications])


def main() -> None:
    if not owner_was_killed():
        return
    # Ray itself would try for minutes, and the signal needs no thread of Python's to end this process.
    signal.alarm(ENDS_WITHIN_S)
    address, then, *names = sys.argv[1:]
    if not is_there(address):
        return
    import ray

    from local_vllm.runs.serve_start import remove_applications

    ray.init(address, log_to_driver=False, configure_logging=False)
    remove_applications(names, shut_down=then == SHUT_DOWN)
    ray.shutdown()


def is_there(address: str, within_s: float = ANSWERS_WITHIN_S) -> bool:
    """Whether somebody listens at the cluster's address before the time is over."""
    from local_vllm.runs.preflight import check_cluster

    deadline = time.monotonic() + within_s
    while True:
        try:
            check_cluster(address)
        except ClusterError:
            if time.monotonic() > deadline:
                return False
            time.sleep(1)
        else:
            return True


if __name__ == "__main__":
    main()
