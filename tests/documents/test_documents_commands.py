"""The command lines of NeMo Gym's vLLM documents, read by a shell: each does what it says, or the README says
what to write instead. Those that need an engine are run in tests/engine_api.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from local_vllm.cli.test import known_parts

HERE = Path(__file__).parent
README = (HERE.parents[1] / "README.md").read_text()
COMMANDS: list[dict[str, Any]] = tomllib.loads((HERE / "commands.toml").read_text())["command"]
CHECKS = {"dry run", "flags", "engine", "rollouts", "tests", "table"}
ENV = """\
policy_base_url: http://vllm-1:8000/v1,http://vllm-2:8000/v1,http://vllm-3:8000/v1
policy_api_key: EMPTY
policy_model_name: meta-llama/Llama-3.1-70B-Instruct
judge_base_url: http://judge-server:8000/v1
judge_api_key: EMPTY
judge_model_name: Qwen/Qwen3-30B-A3B
"""
# Stands before the real command: what a document starts is drawn, on a cluster that need not be there.
DRY_RUN = '#!/bin/sh\nexec "{python}" -m local_vllm.cli.run "$@" +dry_run=true +cluster=2x8\n'
# Instead of vLLM: the words that the shell has made of a line.
NOTE_ARGUMENTS = '#!/bin/sh\nexec "{python}" -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"\n'
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
for argv in json.load(sys.stdin):
    parser.parse_args(argv)
"""


def checked(how: str) -> list[Any]:
    return [
        pytest.param(command, id=f"{command['document']} {number}")
        for number, command in enumerate(COMMANDS)
        if command["check"] == how
    ]


@pytest.fixture
def shell(tmp_path: Path):
    """Runs a text in a shell, in a folder with an env.yaml; what it prints."""
    (tmp_path / "env.yaml").write_text(ENV)
    for name, source in {"ng_run": DRY_RUN, "vllm": NOTE_ARGUMENTS}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(source.format(python=sys.executable))
        program.chmod(0o755)

    def run(text: str) -> str:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-ec", text],
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_each_command_of_the_documents_is_checked_in_one_of_the_ways() -> None:
    assert {command["check"] for command in COMMANDS} == CHECKS


@pytest.mark.parametrize("command", checked("dry run"))
def test_a_launch_gives_the_servers_that_the_document_names(shell, command) -> None:
    text = "\n".join((command.get("before", ""), command["text"], command.get("after", "")))
    drawn = shell(text)

    shown = dict(re.findall(r"^  (\S+)  (\w+), ", drawn, re.MULTILINE)) | dict(
        re.findall(r"^  (\S+)  (\w+)$", drawn, re.MULTILINE)
    )
    assert shown == command["servers"]
    assert command.get("says", "") in drawn


def test_vllms_own_parser_takes_the_flags_of_the_documents(shell) -> None:
    words = [json.loads(shell(command.values[0]["text"])) for command in checked("flags")]
    assert all(line[0] == "serve" for line in words)
    given = json.dumps([["--model", model, *flags] for _, model, *flags in words])
    subprocess.run([sys.executable, "-c", PARSE], input=given, text=True, check=True, timeout=200)


@pytest.mark.parametrize("command", checked("tests"))
def test_a_part_that_a_document_tests_has_tests(command, tmp_path) -> None:
    program, entrypoint = command["text"].split()

    assert program == "ng_test"
    assert all(place.exists() for place in known_parts(tmp_path)[entrypoint.removeprefix("+entrypoint=")])


@pytest.mark.parametrize("command", checked("table"))
def test_what_cannot_be_run_as_it_is_written_stands_in_the_readmes_table(command) -> None:
    section = README.partition("## NeMo Gym's documents")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]

    assert any(command["row"] in row.replace("\\|", "|") for row in rows)
