"""Ids of responses cannot be guessed, and no two are the same."""

from __future__ import annotations

import re

import pytest

from local_vllm.protocol import keys


def test_keys_are_32_hex_digits_and_all_different() -> None:
    made = keys.unpredictable_keys()
    drawn = [next(made) for _ in range(3 * keys.AT_A_TIME)]
    assert len(set(drawn)) == len(drawn)
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in drawn)


def test_they_come_from_the_system_and_each_byte_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys.os, "urandom", lambda size: bytes(number % 251 for number in range(size)))
    made = keys.unpredictable_keys()
    drawn = "".join(next(made) for _ in range(keys.AT_A_TIME))
    assert bytes.fromhex(drawn) == keys.os.urandom(keys.AT_A_TIME * keys.KEY_BYTES)
