"""Flags of `vllm serve`: the checked-in list, and a mapping as words of a command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from local_vllm.config.vllm_serve_flags import SET_BY_US, flag_problems, known_flags, parse_help, to_argv

ROOT = Path(__file__).parents[2]

MAPPINGS = [
    ({"max_model_len": 8192}, ["--max-model-len", "8192"]),
    ({"max-model-len": -1}, ["--max-model-len=-1"]),
    ({"gpu_memory_utilization": 0.9}, ["--gpu-memory-utilization", "0.9"]),
    (
        {"enforce_eager": True, "enable_prefix_caching": False},
        ["--enforce-eager", "--no-enable-prefix-caching"],
    ),
    ({"aggregate_engine_logging": True}, ["--aggregate-engine-logging"]),
    ({"disable_log_stats": False, "seed": None}, []),
    ({"enforce_eager": "true"}, ["--enforce-eager"]),
    ({"compilation_config": {"mode": 1, "on": True}}, ["--compilation-config", '{"mode": 1, "on": true}']),
    ({"served_model_name": ["a", "b"]}, ["--served-model-name", "a", "b"]),
    ({"served_model_name": "a"}, ["--served-model-name", "a"]),
    ({"lora_modules": [{"name": "x", "path": "/x"}]}, ["--lora-modules", '{"name": "x", "path": "/x"}']),
    ({"middleware": ["a.b", "c.d"]}, ["--middleware", "a.b", "--middleware", "c.d"]),
    ({"allowed_origins": ["*"]}, ["--allowed-origins", '["*"]']),
    (
        {"disable_access_log_for_endpoints": ["/health", "/x"]},
        ["--disable-access-log-for-endpoints", "/health,/x"],
    ),
]


@pytest.mark.parametrize(("mapping", "words"), MAPPINGS)
def test_a_mapping_becomes_the_words_that_vllm_reads(mapping, words):
    assert list(flag_problems(mapping)) == []
    assert to_argv(mapping) == words


@pytest.mark.parametrize("value", [True, "true"])
def test_an_engine_keeps_the_statistics_by_which_it_is_watched(value):
    (problem,) = flag_problems({"disable-log-stats": value})
    assert problem.message.startswith("must not be true; the engine is watched by its statistics")


def test_every_flag_that_we_set_is_a_flag_of_vllm():
    assert SET_BY_US.keys() - {"model_tag"} <= known_flags().keys()


def test_the_kind_of_a_flag_is_read_from_a_line_of_help():
    text = (
        "  --headless            Run in headless mode.\n"
        "  --enforce-eager, --no-enforce-eager\n"
        "                        --not-a-flag in a text\n"
        "  --tensor-parallel-size TENSOR_PARALLEL_SIZE, -tp TENSOR_PARALLEL_SIZE\n"
        "  --config-format ['auto', 'hf']\n"
        "  --dtype {auto,half}\n"
        "  --hf-token [HF_TOKEN]\n"
        "  --served-model-name NAME [NAME ...]\n"
        "  --one NAME, --other NAME\n"
        "  -h, --help            show this help message and exit\n"
    )

    assert parse_help(text) == {
        "config_format": "value",
        "dtype": "value",
        "enforce_eager": "negatable",
        "headless": "switch",
        "hf_token": "optional_value",
        "one": "value",
        "other": "value",
        "served_model_name": "values",
        "tensor_parallel_size": "value",
    }


@pytest.mark.engine
def test_the_checked_in_list_is_that_of_the_installed_vllm():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/update-vllm-flags", "--check"],
        capture_output=True,
        text=True,
        timeout=280,
    )

    assert done.returncode == 0, done.stderr
