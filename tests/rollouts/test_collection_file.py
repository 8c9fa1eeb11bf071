"""The file beside an output that says what it is a collection of: whole whenever its writer is killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from local_vllm.rollouts.files import Paths, held
from local_vllm.rollouts.identity import Identity

LONG = Identity("rows.jsonl", 10, "d" * 500, 1, "agent", {})
SHORT = Identity("rows.jsonl", 10, "d", 1, "agent", {})


class Killed(BaseException):
    """The process is gone here."""


def killed(*_: object) -> None:
    raise Killed


def test_killed_before_it_is_cut_to_its_length_it_can_be_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(tmp_path / "o.jsonl")
    paths.output.write_text("{}\n")
    with held(paths) as collection:
        collection.keep_identity(LONG)
        monkeypatch.setattr(os, "ftruncate", killed)
        with pytest.raises(Killed):
            collection.keep_identity(SHORT)
    monkeypatch.undo()

    with held(paths) as again:
        assert again.identity == SHORT


def test_killed_while_it_is_moved_aside_an_output_has_what_it_was_collected_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(tmp_path / "o.jsonl")
    paths.output.write_text("{}\n")
    paths.failures.write_text("{}\n")
    rename = Path.rename

    def once(path: Path, to: Path) -> None:
        rename(path, to)
        raise Killed

    with held(paths) as collection:
        collection.keep_identity(LONG)
        monkeypatch.setattr(Path, "rename", once)
        with pytest.raises(Killed):
            collection.move_aside()
    monkeypatch.undo()

    [aside] = [path for path in tmp_path.glob("o.*-*.jsonl") if path.name.count(".jsonl") == 1]
    with held(Paths(aside)) as moved:
        assert moved.identity == LONG
