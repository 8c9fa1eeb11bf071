"""Holds a private Ray cluster open: `python -m local_vllm.cluster.head OPTIONS_AS_JSON`, run under a guard.

Prints one line of JSON with the cluster's address once it is up, and stops it on SIGTERM.
"""

from __future__ import annotations

import json
import signal
import sys
import threading


def main() -> None:
    stop = threading.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: stop.set())
    options = json.loads(sys.argv[1])

    import ray

    ray.init("local", include_dashboard=False, log_to_driver=False, configure_logging=False, **options)
    print(json.dumps({"address": ray.get_runtime_context().gcs_address}), flush=True)
    stop.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
