"""Deletes a run's applications from a cluster that it joined, when the run itself cannot any more.

`python -m local_vllm.runs.janitor ADDRESS NAME...` reads its standard input to the end. A run that cleans up after
itself writes "done" first; a killed one does not. Serve's controller is detached: without this, applications of a
killed run would stay on somebody else's cluster.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def janitor(ray_address: str, applications: Sequence[str]) -> Iterator[None]:
    """Have the applications deleted if this process dies inside the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "local_vllm.runs.janitor", ray_address, *applications],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.communicate(b"done", timeout=10)


def main() -> None:
    if sys.stdin.buffer.read() == b"done":
        return
    import ray
    from ray import serve

    ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)
    for name in sys.argv[2:]:
        serve.delete(name, _blocking=False)
    ray.shutdown()


if __name__ == "__main__":
    main()
