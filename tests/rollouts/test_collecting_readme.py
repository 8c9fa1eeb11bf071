"""The README's section on collecting against the code that it speaks of."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from local_vllm.rollouts.failures import PATIENCE, Failure
from local_vllm.rollouts.files import Paths
from local_vllm.rollouts.rows import STAMPS
from local_vllm.rollouts.summary import SessionSummary, Summary

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.partition("\n## Collect rollouts\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("failure", Failure)
def test_a_class_of_failure_stands_in_the_table_with_its_attempts(failure: Failure) -> None:
    attempts = "" if failure is Failure.ENGINE_DOWN else f"{PATIENCE[failure].attempts} "
    assert re.search(rf"^\| `{failure}` \|.*\| {attempts}\|$", SECTION, re.MULTILINE)


@pytest.mark.parametrize("field", sorted({*STAMPS, *(f.name for part in (Summary, SessionSummary) for f in fields(part))}))
def test_a_field_of_the_output_and_of_the_summary_is_told(field: str) -> None:
    assert f"`{field}`" in SECTION


@pytest.mark.parametrize("sidecar", ["failures", "summary", "collection"])
def test_a_file_beside_the_output_is_told(sidecar: str) -> None:
    assert f"`{getattr(Paths(Path('<output>')), sidecar)}`" in SECTION
