"""The scripts' command lines. CI goes through what they install and start by running them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP, QUICKSTART, TEST, CI = "scripts/setup", "scripts/quickstart", "scripts/test", ".ci/run"


def run(script: Path | str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / script, *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env={**os.environ, **env},
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository root without .venv, with what setup reads."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / SETUP, tmp_path / SETUP)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "scripts/tested-versions-cpu.txt", tmp_path / "scripts")
    return tmp_path


@pytest.mark.parametrize("script", [SETUP, QUICKSTART, TEST, CI])
def test_every_script_is_executable_and_parses(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / script]).returncode == 0


@pytest.mark.parametrize("script", [SETUP, QUICKSTART])
def test_help_names_every_option_that_an_unknown_one_is_answered_with(script: str) -> None:
    refusal = run(script, "--bogus")
    assert refusal.returncode == 2
    assert refusal.stderr.count("\n") == 1 and "'--bogus'" in refusal.stderr
    known = set(re.findall(r"--[a-z]+", refusal.stderr)) - {"--bogus", "--help"}
    shown = run(script, "--help")
    assert shown.returncode == 0
    assert known and all(re.search(rf"^  .*{option}\b", shown.stdout, re.MULTILINE) for option in known)


def test_help_of_the_test_script_says_how_to_leave_the_engines_out() -> None:
    assert 'scripts/test -m "not engine"' in run(TEST, "--help").stdout


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (SETUP, ["--cpu", "--gpu"], "setup: --cpu and --gpu exclude each other\n"),
        (QUICKSTART, ["--model"], "quickstart: --model needs a name\n"),
        (QUICKSTART, ["--model", "--once"], "quickstart: --model needs a name\n"),
        (
            QUICKSTART,
            ["Qwen3-4B"],
            "quickstart: 'Qwen3-4B' is no override for ng_run; write key=value, or --model Qwen3-4B\n",
        ),
    ],
)
def test_a_wrong_command_line_is_answered_with_one_line(script: str, words: list[str], message: str) -> None:
    done = run(script, *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_setup_without_a_recent_python_says_which_it_looked_for(clone: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "flock", "sed", "grep", "sha256sum"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    done = run(clone / SETUP, "--cpu", PATH=str(tools))
    assert done.returncode == 1
    assert done.stderr.startswith("setup: no Python 3.11 or newer was found (tried python3 python3.13 python3.12 python3.11)")
    assert not (clone / ".venv").exists()


def test_a_step_that_fails_shows_the_end_of_its_output_and_is_started_over_next_time(clone: Path) -> None:
    failing_python = clone / "python3"
    failing_python.write_text('#!/bin/sh\ncase $1 in -c) ;; *) echo "no space left"; exit 1 ;; esac\n')
    failing_python.chmod(0o755)
    path = f"{clone}:{os.environ['PATH']}"
    first = run(clone / SETUP, "--cpu", PATH=path)
    assert first.returncode == 1
    assert "no space left" in first.stderr and str(clone / ".venv/setup.log") in first.stderr
    assert "removing .venv: it was left half made" in run(clone / SETUP, "--cpu", PATH=path).stderr
