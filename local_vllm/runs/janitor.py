"""Deletes a run's applications from a cluster that it joined, when the run itself cannot any more.

`python -m local_vllm.runs.janitor ADDRESS {shut-down|keep} NAME...` is started by the run and waits for its end. Serve's controller is
detached: without this, the applications of a killed run would stay on somebody else's cluster.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Sequence

from local_vllm.errors import ClusterError
from local_vllm.processes.survivor import Survivor, owner_was_killed

SHUT_DOWN = "shut-down"
# A cluster that nobody answers for so long is gone, and the applications with it.
ANSWERS_WITHIN_S = 60.0
# Another run may start Serve, or deploy to it, for half of that.
ENDS_WITHIN_S = 600


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

    ray.init(address, log_to_driver=False, configure_logging=False)
    asyncio.run(remove(names, shut_down=then == SHUT_DOWN))
    ray.shutdown()


async def remove(applications: Sequence[str], *, shut_down: bool) -> None:
    """Take them away when it is this process's turn to do something to Serve."""
    from local_vllm.runs.lease import lease
    from local_vllm.runs.serve_start import remove_applications
    from local_vllm.runs.tenancy import SERVE, SERVE_HOLD_S
    from local_vllm.runs.threads import in_thread

    holder = f"the clean-up after {', '.join(applications)}"
    async with lease(SERVE, holder, hold_s=SERVE_HOLD_S, tell=lambda doing, over: None):
        await in_thread(lambda: remove_applications(applications, shut_down=shut_down))


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
