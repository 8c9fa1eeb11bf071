"""Engine tests count logical GPUs, so they need a machine without real ones."""

from __future__ import annotations

import pytest

from local_vllm.cluster.machine import gpu_count


@pytest.fixture(scope="session", autouse=True)
def without_real_gpus() -> None:
    if gpu_count():
        pytest.skip("these tests count logical GPUs; this machine has real ones")
