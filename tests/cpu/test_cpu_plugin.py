"""The platform plugin: silent unless it is asked for, and then a CpuPlatform that Ray counts as GPUs."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from local_vllm.cpu.plugin import SWITCH, register

RESOLVE = "from vllm.platforms import current_platform as p; print(type(p).__name__, repr(p.ray_device_key))"


def resolved_platform(value: str | None) -> str:
    """What vLLM, in a process of its own, takes for its platform."""
    environment = {key: kept for key, kept in os.environ.items() if key != SWITCH}
    if value is not None:
        environment[SWITCH] = value
    command = [sys.executable, "-c", RESOLVE]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return run.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("value", [None, "", "0", "true"])
def test_the_plugin_offers_nothing_unless_the_switch_is_1(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv(SWITCH, raising=False)
    else:
        monkeypatch.setenv(SWITCH, value)
    assert register() is None


def test_the_plugin_names_a_class_that_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setenv(SWITCH, "1")
    name = register()
    assert name is not None
    module, _, class_name = name.rpartition(".")
    assert hasattr(importlib.import_module(module), class_name)


def test_vllm_finds_the_plugin_through_its_entry_point_when_asked() -> None:
    pytest.importorskip("vllm")
    assert resolved_platform("1") == "LogicalGpuCpuPlatform 'GPU'"


def test_vllm_does_not_see_the_plugin_when_not_asked() -> None:
    pytest.importorskip("vllm")
    assert "LogicalGpu" not in resolved_platform(None)


def test_asking_for_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys; from local_vllm.cpu.plugin import register; assert register(); "
        "print(sorted({'torch', 'vllm', 'ray', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, SWITCH: "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert run.stdout.strip() == "[]"
