"""What takes too long for every change is left to scripts, which ask for it with LOCAL_VLLM_LONG=1.

tests/long_runs.md has their results.
"""

from __future__ import annotations

import os

# In the order of scripts/sample-topologies, scripts/fault-matrix, scripts/races and scripts/session-caches.
LONG = [
    "multinode/test_sixteen_gpus.py",
    "multinode/test_node_loss.py",
    "races/test_real_races.py",
    "engine_sessions",
]

collect_ignore = [] if os.environ.get("LOCAL_VLLM_LONG") else LONG
