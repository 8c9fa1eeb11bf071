"""`ng_run +dry_run=true` as a process: what it loads, how long it takes, what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from timed_command import timed

NG_RUN = Path(sys.executable).parent / "ng_run"
QWEN = "responses_api_models/local_vllm_model/configs/Qwen"
ONE = f"+config_paths=[{QWEN}/Qwen3-30B-A3B-Instruct-2507.yaml]"
TWO = f"+config_paths=[{QWEN}/Qwen3-30B-A3B-Instruct-2507.yaml,{QWEN}/Qwen3-30B-A3B-Thinking-2507.yaml]"


def test_a_dry_run_on_a_described_cluster_loads_no_ray_no_vllm_and_no_http_client(tmp_path: Path) -> None:
    program = (
        "import sys; from local_vllm.cli.run import run\n"
        f"status = run([{ONE!r}, '+dry_run=true', '+cluster=4x8'])\n"
        "heavy = ('ray', 'vllm', 'torch', 'aiohttp', 'huggingface_hub', 'transformers', 'numpy')\n"
        "print(status, [name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    (tmp_path / "env.yaml").touch()
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr == "0 []\n"


def test_a_dry_run_answers_in_about_a_second_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "env.yaml").touch()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"XDG_STATE_HOME": str(tmp_path / "state"), "HF_HUB_OFFLINE": "1"}
    done, took = timed([NG_RUN, TWO, "+dry_run=true", "+cluster=64x8"], tmp_path, env)

    assert (done.returncode, done.stderr) == (0, "")
    assert "vllm serve" in done.stdout
    assert took < 1.6
    assert not (tmp_path / "state").exists()
