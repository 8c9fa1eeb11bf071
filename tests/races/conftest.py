"""A cluster of four logical GPUs on which vLLM is a stand-in, shared by the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from joined_ray import JoinedRay, joined_ray

STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture(scope="session")
def stand_in_cluster() -> Iterator[JoinedRay]:
    path = os.pathsep.join(filter(None, [str(STAND_IN), os.environ.get("PYTHONPATH", "")]))
    with joined_ray(4, PYTHONPATH=path) as cluster:
        yield cluster
