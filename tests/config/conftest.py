"""A working directory of its own for each test, with an env.yaml, so that no other env.yaml is found."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from local_vllm.config.compose import load_run_config
from local_vllm.config.schema import RunConfig
from local_vllm.errors import ConfigError

Write = Callable[[str, str], Path]
Load = Callable[..., RunConfig]
Problems = Callable[..., list[str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        return file

    write_file("env.yaml", "")
    return write_file


@pytest.fixture
def load(write: Write, tmp_path: Path) -> Load:
    return lambda *argv: load_run_config(argv, cwd=tmp_path)


@pytest.fixture
def problems(load: Load) -> Problems:
    """The lines of the ConfigError that these words cause."""

    def lines(*argv: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(*argv)
        return str(caught.value).splitlines()

    return lines
