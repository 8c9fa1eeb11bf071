"""The command lines of NeMo Gym's vLLM documents that need an engine or servers, against real ones.

Only addresses are ours: the documents write those of their readers. tests/documents has the other command lines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from engine_answers import engine_url
from ng_run_process import KEY, NgRun

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

FILE = Path(__file__).parents[1] / "documents" / "commands.toml"
COMMANDS: list[dict[str, Any]] = tomllib.loads(FILE.read_text())["command"]


def checked(how: str) -> list[dict[str, Any]]:
    return [command for command in COMMANDS if command["check"] == how]


def shell(text: str, folder: Path, **environment: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", text],
        cwd=folder,
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("command", checked("engine"), ids=lambda command: command["text"].split()[1])
def test_an_engine_answers_what_the_documents_ask_it(run: NgRun, tmp_path: Path, command: dict[str, Any]) -> None:
    address = engine_url(run, "policy_model").removesuffix("/v1")
    asked = command["text"].replace("curl ", f"curl --fail -sS -H 'Authorization: Bearer {KEY}' ")
    assert command["says"] in shell(asked.replace(command["address"], address), tmp_path)


@pytest.mark.parametrize("command", checked("rollouts"), ids=lambda command: command["document"])
def test_the_rollouts_of_the_documents_are_collected(run: NgRun, tmp_path: Path, command: dict[str, Any]) -> None:
    # Without a port of its own the command finds the one run that there is.
    shell(command["text"], tmp_path, XDG_STATE_HOME=str(run.state))
    lines = (tmp_path / "results/vllm_rollouts.jsonl").read_text().splitlines()
    assert len(lines) == command["rows"]
    assert all("reward" in json.loads(line) for line in lines)
