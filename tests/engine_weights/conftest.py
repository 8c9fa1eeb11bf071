"""The tiny model on a stand-in Hub, and a cache of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in_hub import Repository, StandInHub, files_of

from local_vllm.cpu.default_model import build_default_model

TINY = "tiny-org/tiny-model"


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tiny model's files, and such as no vLLM loads."""
    files = files_of(build_default_model(tmp_path_factory.mktemp("hub") / "tiny"))
    del files["content_version.txt"]
    return files | {
        "README.md": b"# tiny",
        "original/consolidated.00.pth": bytes(2 << 20),
        "tiny.gguf": bytes(2 << 20),
    }


@pytest.fixture
def hub(tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    server = StandInHub({TINY: Repository(dict(tiny_files))})
    yield server
    server.stop()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hf" / "hub"
