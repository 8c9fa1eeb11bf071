"""The planner's benchmark runs; its figure is printed, and only something generous is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench-planner"


def test_a_thousand_nodes_are_planned_in_seconds_even_on_a_busy_machine(capsys: pytest.CaptureFixture[str]):
    command = [sys.executable, str(SCRIPT), "--nodes", "1024", "--rounds", "3"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    with capsys.disabled():
        print(f"\n{text}", end="")
    medians = {words[1]: float(words[2]) for words in map(str.split, text.splitlines()[1:])}
    assert medians.keys() == {"fresh", "worn", "refused"}
    assert max(medians.values()) < 5000
