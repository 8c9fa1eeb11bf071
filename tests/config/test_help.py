"""The help text, which is made of the schema."""

from __future__ import annotations

import pytest

from local_vllm.config.help import global_keys_help, server_keys_help
from local_vllm.config.schema import REGISTRY, GlobalSettings


@pytest.mark.parametrize(
    "model", [GlobalSettings, *(m for known in REGISTRY.values() for m in known.values())]
)
def test_every_key_is_described(model):
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_the_help_names_every_key_that_works_and_its_default():
    text = global_keys_help()

    assert "http_port" in text
    assert "[11000]" in text
    assert "dry_run" in text


def test_the_help_has_a_section_for_each_implementation():
    text = server_keys_help()

    for known in REGISTRY.values():
        for implementation in known:
            assert f"\n{implementation}: " in text
    assert "vllm_serve_kwargs.tensor_parallel_size" in text
