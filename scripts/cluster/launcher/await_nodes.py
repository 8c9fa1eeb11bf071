"""`await_nodes.py HEAD N SECONDS`: ends with 0 once N nodes have joined Ray at HEAD, with 1 if they do not.

A process of its own: whoever imports Ray has threads, and job.py starts others.
"""

from __future__ import annotations

import signal
import sys
import time

import ray

from local_vllm.cluster.nodes import read_cluster

POLL_S = 0.25
SAY_AGAIN_S = 15.0


def main(head: str, count: int, timeout_s: float) -> int:
    ray.init(head, log_to_driver=False, configure_logging=False)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray has taken it
    begun = said_at = time.monotonic()
    while len(nodes := read_cluster().nodes) < count:
        joined = f"{len(nodes)} of {count} nodes have joined: {', '.join(node.address for node in nodes)}"
        if time.monotonic() - begun > timeout_s:
            say(f"after {timeout_s:.0f} s {joined}; the others say above why not, or cannot reach {head}")
            return 1
        if time.monotonic() - said_at > SAY_AGAIN_S:
            said_at = time.monotonic()
            say(joined)
        time.sleep(POLL_S)
    gpus = sum(node.gpus_total for node in nodes)
    say(f"{len(nodes)} nodes with {gpus} GPUs at {head}: {', '.join(node.address for node in nodes)}")
    return 0


def say(what: str) -> None:
    print(f"cluster: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
