"""The key of an engine of ours: made at random where others could reach its port, and handed over where nobody sees it."""

from __future__ import annotations

import pytest

from local_vllm.cluster import machine
from local_vllm.config.redact import HIDDEN, redacted
from local_vllm.runs.engine_specs import NO_KEY, engine_key


@pytest.mark.parametrize("outside", [True, False])
def test_the_default_key_becomes_a_random_one_where_the_machine_can_be_reached(
    monkeypatch: pytest.MonkeyPatch, outside: bool
) -> None:
    monkeypatch.setattr(machine, "has_outside_address", lambda: outside)
    keys = {engine_key(NO_KEY) for _ in range(3)}
    assert keys == {NO_KEY} if not outside else len(keys) == 3 and all(len(key) >= 40 for key in keys)
    assert engine_key("a-key-of-the-configuration") == "a-key-of-the-configuration"


@pytest.mark.parametrize(
    "name", ["VLLM_API_KEY", "api_key", "api_keys", "client_api_key", "LOCAL_VLLM_API_KEYS", "HF_TOKEN", "hf_token"]
)
def test_what_holds_a_key_is_hidden_wherever_a_configuration_is_shown(name: str) -> None:
    assert redacted({name: "s3cret"}) == {name: HIDDEN}
    assert redacted({name: ["s3cret"]}) == {name: HIDDEN}
