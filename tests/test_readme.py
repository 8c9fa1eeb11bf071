"""The README's tables against the code that they speak of."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_vllm.config.schema import REGISTRY
from local_vllm.protocol.vllm_fields import PASSED_THROUGH

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("field", PASSED_THROUGH)
def test_a_field_that_passes_through_stands_in_the_table(field: str) -> None:
    assert f"| `{field}` |" in README


@pytest.mark.parametrize("implementation", [name for known in REGISTRY.values() for name in known])
def test_an_implementation_stands_in_the_table(implementation: str) -> None:
    assert f"| `{implementation}` |" in README
