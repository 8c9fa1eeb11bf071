"""A replica keeps the memory of large bodies for the next ones, in place of getting it from the system each time."""

from __future__ import annotations

import subprocess
import sys

ROUNDS = 20
# As many bytes as an answer with thousands of token ids, as often as several requests are in flight.
WORK = """
import resource, sys
from local_vllm.serving.replica import settle_memory

if sys.argv[1] == "settled":
    settle_memory()

def rounds(number):
    for _ in range(number):
        bodies = [b"x" * 490_000 for _ in range(8)]
        del bodies

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

rounds(5)
before = faults()
rounds(int(sys.argv[2]))
print(faults() - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", WORK, how, str(ROUNDS)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_large_bodies_cost_no_page_faults_again_and_again() -> None:
    assert page_faults("settled") < page_faults("as it is") / 10
