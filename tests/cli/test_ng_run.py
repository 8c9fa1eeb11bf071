"""`ng_run` as a person types it, as far as it goes without starting anything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

NG_RUN = Path(sys.executable).parent / "ng_run"


def ng_run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run([NG_RUN, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def test_everything_wrong_is_told_at_once_with_its_path_and_status_2_within_3_s(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = ng_run(
        "++policy_model.responses_api_models.local_vllm_model.vllm_serve_kwargs.tensor_paralel_size=2",
        "++policy_model.responses_api_models.local_vllm_model.vllm_serve_kwargs.port=1",
        "++http_prot=1",
        cwd=tmp_path,
    )
    assert time.monotonic() - begun < 3
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "vllm_serve_kwargs.tensor_paralel_size" in done.stderr
    assert "tensor_parallel_size" in done.stderr
    assert "vllm_serve_kwargs.port" in done.stderr
    assert "http_port" in done.stderr


def test_a_taken_port_is_told_with_its_holder(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = ng_run(f"++http_port={port}", cwd=tmp_path)
    assert done.returncode == 1
    assert f"127.0.0.1:{port} is taken by" in done.stderr
    assert f"(pid {os.getpid()})" in done.stderr


def test_a_plan_that_does_not_fit_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    kwargs = "++policy_model.local_vllm_model.vllm_serve_kwargs.tensor_parallel_size=4"
    done = ng_run(kwargs, "+logical_gpus=2", "++http_port=23999", cwd=tmp_path)
    assert done.returncode == 1
    assert "TP 4" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = ng_run("+ray_address=127.0.0.1:1", "++http_port=23998", cwd=tmp_path)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_teaches_the_command_and_its_keys(tmp_path: Path) -> None:
    done = ng_run("--help", cwd=tmp_path)
    assert done.returncode == 0
    for part in ("+config_paths=", "http_port", "logical_gpus", "tensor_parallel_size", "Exit status"):
        assert part in done.stdout
