"""Launches that NeMo Gym's page on local vLLM describes in words; those that stand in its documents as command lines
are in tests/documents.
"""

from __future__ import annotations

import pickle

import pytest

from local_vllm.cli.run import run
from local_vllm.config import lookup

INSTRUCT = "responses_api_models/local_vllm_model/configs/Qwen/Qwen3-30B-A3B-Instruct-2507.yaml"
WEATHER = "resources_servers/simple_weather/configs/simple_weather.yaml"
THINKING = "responses_api_models/local_vllm_model/configs/Qwen/Qwen3-30B-A3B-Thinking-2507.yaml"

COMMANDS = {
    "one node": (
        [f"+config_paths=[{WEATHER},{INSTRUCT}]"],
        {
            "simple_weather": "simple_weather",
            "simple_weather_simple_agent": "simple_agent",
            "Qwen3-30B-A3B-Instruct-2507": "local_vllm_model",
        },
    ),
    "two copies": (
        [
            f"+config_paths=[{INSTRUCT}]",
            "++Qwen3-30B-A3B-Instruct-2507.responses_api_models.local_vllm_model.vllm_serve_kwargs.data_parallel_size=2",
            "++policy_model.responses_api_models.local_vllm_model.vllm_serve_kwargs.tensor_parallel_size=4",
        ],
        {"Qwen3-30B-A3B-Instruct-2507": "local_vllm_model"},
    ),
    "two models": (
        [f"+config_paths=[{INSTRUCT},{THINKING}]"]
        + [
            f"++{name}.responses_api_models.local_vllm_model.vllm_serve_kwargs.tensor_parallel_size=4"
            for name in ("Qwen3-30B-A3B-Instruct-2507", "Qwen3-30B-A3B-Thinking-2507")
        ],
        {
            "Qwen3-30B-A3B-Instruct-2507": "local_vllm_model",
            "Qwen3-30B-A3B-Thinking-2507": "local_vllm_model",
        },
    ),
    "span": (
        [
            f"+config_paths=[{INSTRUCT}]",
            "++policy_model.local_vllm_model.vllm_serve_kwargs.tensor_parallel_size=16",
            "++policy_model.local_vllm_model.vllm_serve_env_vars.VLLM_RAY_DP_PACK_STRATEGY=span",
        ],
        {"Qwen3-30B-A3B-Instruct-2507": "local_vllm_model"},
    ),
}


@pytest.mark.parametrize(("argv", "servers"), COMMANDS.values(), ids=COMMANDS)
def test_a_published_command_gives_the_servers_that_it_names(load, argv, servers):
    config = load(*argv)

    assert {server.name: server.implementation for server in config.servers} == servers


@pytest.mark.parametrize(("argv", "servers"), COMMANDS.values(), ids=COMMANDS)
def test_a_published_command_can_be_tried_on_a_cluster_described_by_hand(
    monkeypatch, tmp_path, capsys, argv, servers
):
    monkeypatch.chdir(tmp_path)

    assert run([*argv, "+dry_run=true", "+cluster=2x8"]) == 0
    shown = capsys.readouterr().out
    assert all(f"/{name}" in shown for name in servers)
    assert shown.count("vllm serve ") == list(servers.values()).count("local_vllm_model")


def test_a_run_config_can_be_sent_to_another_process(load):
    config = load("+policy_model.local_vllm_model.api_key=sk-1")

    assert pickle.loads(pickle.dumps(config)) == config


def test_an_installed_package_finds_the_configs_inside_itself(monkeypatch, tmp_path):
    package = tmp_path / "site-packages" / "local_vllm"
    (package / "configs" / "Qwen").mkdir(parents=True)
    (package / "configs" / "Qwen" / "X.yaml").touch()
    monkeypatch.setattr(lookup, "PACKAGE", package)

    assert lookup.shipped_names() == ("Qwen/X.yaml",)
    assert lookup.find_file("responses_api_models/local_vllm_model/configs/Qwen/X.yaml", [tmp_path]).is_file()
