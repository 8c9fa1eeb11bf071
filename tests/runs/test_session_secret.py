"""The secret that signs session cookies."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from local_vllm.runs.session_secret import SECRET_BYTES, session_secret


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "local_vllm"


def test_the_secret_is_the_same_for_the_next_run_and_nobody_else_may_read_it(state: Path) -> None:
    first = session_secret()
    assert session_secret() == first
    assert len(first) == SECRET_BYTES
    (path,) = state.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_runs_that_start_together_have_one_secret() -> None:
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(lambda _: session_secret(), range(64)))) == 1


def test_another_user_has_another_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = session_secret()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    assert session_secret() != first
