"""What a dry run shows of an engine that answers the Responses API itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shown_commands import shown_engines

from local_vllm.cli.run import run

MODEL = "Qwen3-30B-A3B-Instruct-2507"
CONFIG = f"+config_paths=[responses_api_models/local_vllm_model/configs/Qwen/{MODEL}.yaml]"


def test_the_middleware_and_its_settings_are_shown_without_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "env.yaml").touch()
    key = f"++{MODEL}.local_vllm_model"
    own = [f"{key}.extra_body={{top_k:5,api_key:x}}", f"{key}.vllm_serve_kwargs.middleware=a.B"]

    assert run([CONFIG, f"{key}.direct_responses=true", *own, "+cluster=1x8", "+dry_run=true"]) == 0
    ((variables, words),) = shown_engines(capsys.readouterr().out)
    assert [after for word, after in zip(words, words[1:], strict=False) if word == "--middleware"] == [
        "local_vllm.serving.direct.DirectResponses",
        "a.B",
    ]
    told = json.loads(variables["LOCAL_VLLM_DIRECT_RESPONSES"])
    assert (told["server"], told["model"]) == (MODEL, f"Qwen/{MODEL}")
    assert told["converter"]["extra_body"].items() >= {"top_k": 5, "api_key": "***"}.items()
    assert "timeouts" not in told, "what is as it is by default is not told"
