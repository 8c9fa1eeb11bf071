"""What a process loads before it can do its part of a start: seconds that every engine would wait for."""

from __future__ import annotations

import subprocess
import sys

import pytest


def loaded(modules: str, *names: str) -> list[str]:
    """Those of `names` that are loaded once `modules` are imported."""
    program = f"import sys, {modules}; print(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split()


def test_engines_are_launched_before_serve_is_loaded() -> None:
    launching = "local_vllm.engine.launching, local_vllm.runs.recovery, local_vllm.runs.tenancy"
    assert loaded(launching, "ray.serve", "vllm", "torch") == []


@pytest.mark.parametrize(
    ("process", "modules"),
    [
        ("an engine's host", "local_vllm.engine.actor"),
        ("a watcher on another node", "local_vllm.engine.node_watch"),
        ("a provider of weights", "local_vllm.engine.weights"),
    ],
)
def test_a_process_of_an_engine_loads_neither_serve_nor_vllm_nor_the_hubs_client(process: str, modules: str) -> None:
    assert loaded(modules, "ray.serve", "vllm", "torch", "huggingface_hub") == [], process
