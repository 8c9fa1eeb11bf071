"""When a lease is asked for, which its holder may have lost; Ray is stood in for."""

from __future__ import annotations

import pytest
import ray

from local_vllm.errors import RunError
from local_vllm.runs import lease
from local_vllm.runs.lease import Lease


@pytest.fixture(autouse=True)
def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def state(actor: object) -> tuple[str, float]:
        raise ray.exceptions.RayActorError

    monkeypatch.setattr(lease, "_state", state)


async def test_a_lease_that_nobody_can_have_taken_away_yet_is_not_asked_for() -> None:
    await Lease("launch", None, sure_s=60.0).check()  # type: ignore[arg-type]


async def test_a_lease_that_was_taken_away_is_noticed() -> None:
    with pytest.raises(RunError, match="the cluster's launch lease was lost"):
        await Lease("launch", None, sure_s=0.0).check()  # type: ignore[arg-type]
