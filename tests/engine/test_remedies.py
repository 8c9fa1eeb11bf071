"""What is said of an engine that ran out of memory: the four settings of the documents, with the values they have."""

from __future__ import annotations

import pytest

from local_vllm.engine.remedies import remedy

SAYS_SO = [
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
    "ValueError: To serve at least one request with the models's max seq len (40960), 5.62 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (1.2 GiB).",
    "ValueError: Free memory on device (12/80 GiB) on startup is less than desired GPU memory utilization (0.9, 72 GiB).",
]


@pytest.mark.parametrize("log", SAYS_SO)
def test_every_way_to_run_out_of_memory_is_answered_with_the_four_settings(log: str) -> None:
    told = remedy(log, {})
    assert all(name in told for name in ("gpu_memory_utilization", "max_model_len", "max_num_seqs", "cpu_offload_gb"))


def test_the_values_of_this_config_are_told_and_better_ones_offered() -> None:
    flags = {"gpu_memory_utilization": 0.95, "max_model_len": 32768, "max_num_seqs": 512, "cpu_offload_gb": 4}
    assert remedy(SAYS_SO[0], flags) == (
        "Out of memory: reduce gpu_memory_utilization (now 0.95, try 0.85); lower max_model_len (now 32768, try 16384); "
        "lower max_num_seqs (now 512, try 256); raise cpu_offload_gb (now 4) (all in vllm_serve_kwargs), "
        "or spread the model wider"
    )


def test_settings_that_the_config_leaves_to_vllm_are_told_as_such() -> None:
    told = remedy(SAYS_SO[0], {})
    assert "gpu_memory_utilization (now vLLM's 0.9, try 0.85)" in told
    assert "max_model_len (now the model's own, try 16384)" in told
    assert "set cpu_offload_gb: 8" in told


def test_a_value_that_is_low_already_is_not_lowered() -> None:
    assert "try" not in remedy(SAYS_SO[0], {"gpu_memory_utilization": 0.5}).split(";")[0]


@pytest.mark.parametrize("log", ["", "ImportError: no module named x", "RuntimeError: Engine core initialization failed"])
def test_what_is_not_about_memory_gets_no_such_advice(log: str) -> None:
    assert remedy(log, {}) == ""
