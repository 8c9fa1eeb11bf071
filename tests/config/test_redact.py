"""What is hidden of a configuration that is shown."""

from __future__ import annotations

import pytest

from local_vllm.config.redact import HIDDEN, is_secret, redacted


@pytest.mark.parametrize(
    "name", ["VLLM_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db.password", "api-key", "apikey"]
)
def test_a_name_whose_last_word_says_so_holds_a_secret(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "max_num_batched_tokens", "bos_token_id", "NCCL_DEBUG", "KEY_SIZE"]
)
def test_a_name_that_only_sounds_like_it_does_not(name):
    assert not is_secret(name)


def test_secrets_are_hidden_however_deep_they_lie():
    shown = redacted({"a": [{"remote": {"password": "p", "port": 1}}], "TOKEN": "t", "EMPTY_KEY": ""})

    assert shown == {"a": [{"remote": {"password": HIDDEN, "port": 1}}], "TOKEN": HIDDEN, "EMPTY_KEY": ""}


def test_a_url_loses_what_stands_before_its_host():
    assert redacted("redis://me:pass@host:1/0, http://x/v1") == "redis://***@host:1/0, http://x/v1"
