"""The ports that a run takes for itself: none that Ray, Serve or the kernel may hand to somebody else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from local_vllm.cluster import machine
from local_vllm.errors import ClusterError


@pytest.fixture
def kernels_own(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    return lambda low, high: monkeypatch.setattr(machine, "ephemeral_ports", lambda: (low, high))


@pytest.mark.parametrize(("low", "high"), [(32768, 60999), (22000, 60999), (1024, 31500)])
def test_a_block_of_ports_keeps_away_from_the_kernels_own(kernels_own, low: int, high: int):
    kernels_own(low, high)
    for _ in range(200):
        block = machine.port_block(500)
        assert len(block) == 500
        assert block[-1] < low or block[0] > high
        assert any(block[0] in ours and block[-1] in ours for ours in machine.PORT_RANGES)


def test_single_ports_stay_out_of_a_block_that_is_for_others():
    block = machine.port_block(9000)
    assert not set(machine.free_ports(50, apart_from=block)) & set(block)


def test_no_room_for_a_block_is_told_with_what_was_needed(kernels_own):
    kernels_own(20_400, 60_999)
    with pytest.raises(ClusterError, match="500 ports in a row were needed between 20000 and 32767"):
        machine.port_block(500)
