"""What comes from outside is data: nothing of it is run or unpickled, unless the configuration says so, and that is said."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import local_vllm
from local_vllm.config.compose import load_run_config

SOURCES = sorted(Path(local_vllm.__file__).parent.rglob("*.py"))
LOADERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "torch", "joblib"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
FLAG = "++policy_model.local_vllm_model.vllm_serve_kwargs.trust_remote_code"


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


@pytest.mark.parametrize("part", ["serving", "protocol", "environments", "rollouts", "runs", "cli", "config"])
def test_nothing_that_reads_what_comes_from_outside_unpickles_or_evaluates(part: str) -> None:
    found = [source for source in SOURCES if f"/local_vllm/{part}/" in str(source)]
    assert found
    for source in found:
        tree = ast.parse(source.read_text())
        assert not LOADERS & set(imported(tree)), source
        assert not RUNNERS & set(called(tree)), source


def test_no_shipped_configuration_trusts_the_code_of_a_model(tmp_path: Path) -> None:
    configs = [*Path(local_vllm.__file__).parents[1].glob("configs/**/*.yaml"), *Path(local_vllm.__file__).parent.rglob("*.yaml")]
    assert configs and not [file for file in configs if "trust_remote_code" in file.read_text()]


@pytest.mark.parametrize(("word", "notices"), [("true", 1), ("false", 0)])
def test_code_of_a_model_that_is_trusted_is_told_at_the_start(tmp_path: Path, word: str, notices: int) -> None:
    (tmp_path / "env.yaml").touch()
    config = load_run_config([f"{FLAG}={word}"], cwd=tmp_path)
    assert len([each for each in config.notices if "trust_remote_code is on" in each]) == notices


def test_flags_by_which_vllm_limits_what_it_fetches_reach_its_command_line(tmp_path: Path) -> None:
    (tmp_path / "env.yaml").touch()
    words = [f"{FLAG.rpartition('.')[0]}.allowed_media_domains=[images.example]"]
    (server,) = load_run_config(words, cwd=tmp_path).servers
    assert server.settings.vllm_serve_kwargs.flags()["allowed_media_domains"] == ["images.example"]
