"""All replicas of a run see one response store, whichever of them, or of its processes, dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    program = Path(__file__).with_name("store_replicas.py")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    folder = tmp_path_factory.mktemp("store")
    done = subprocess.run(
        [sys.executable, str(program), str(folder / "responses.db"), str(folder / "seen.json")],
        env=inherited | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "seen.json").read_text())


@pytest.fixture(params=["memory", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_response_of_one_replica_is_there_for_another(seen: Mapping[str, Any], kind: str) -> None:
    assert seen[kind]["chain"] == 100


def test_putting_a_hundred_responses_takes_milliseconds(seen: Mapping[str, Any], kind: str) -> None:
    assert seen[kind]["put_s"] < 0.05


def test_a_response_that_is_still_on_its_way_is_waited_for(seen: Mapping[str, Any], kind: str) -> None:
    assert seen[kind]["late"] is True
    assert seen[kind]["unknown"] is False


def test_responses_outlive_the_replica_that_gave_them(seen: Mapping[str, Any], kind: str) -> None:
    assert seen[kind]["after_its_replica_died"] is True


def test_a_store_that_dies_comes_back_with_its_file_or_empty(seen: Mapping[str, Any], kind: str) -> None:
    assert seen[kind]["after_the_store_died"] is (kind == "sqlite")
    assert seen[kind]["and_then"] is True


def test_nothing_is_left_of_a_store_after_its_run(seen: Mapping[str, Any]) -> None:
    assert seen["left"] == []
