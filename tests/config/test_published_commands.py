"""The `ng_run` command lines of NeMo Gym's vLLM documents, word for word after the shell has read them."""

from __future__ import annotations

import pickle

import pytest

from local_vllm.cli.run import run
from local_vllm.config import lookup

ENV = """
    policy_base_url: http://vllm-1:8000/v1,http://vllm-2:8000/v1,http://vllm-3:8000/v1
    policy_api_key: EMPTY
    policy_model_name: meta-llama/Llama-3.1-70B-Instruct
    judge_base_url: http://judge-server:8000/v1
    judge_api_key: EMPTY
    judge_model_name: Qwen/Qwen3-30B-A3B
"""
VLLM = "responses_api_models/vllm_model/configs/vllm_model.yaml"
JUDGE = "responses_api_models/vllm_model/configs/vllm_judge_model.yaml"
OPENAI = "responses_api_models/openai_model/configs/openai_model.yaml"
INSTRUCT = "responses_api_models/local_vllm_model/configs/Qwen/Qwen3-30B-A3B-Instruct-2507.yaml"
THINKING = "responses_api_models/local_vllm_model/configs/Qwen/Qwen3-30B-A3B-Thinking-2507.yaml"


def environment(name: str, file: str | None = None) -> str:
    return f"resources_servers/{name}/configs/{file or name}.yaml"


COMMANDS = {
    "use": ([f"+config_paths=[{environment('example_multi_step')},{VLLM}]"], {"policy_model": "vllm_model"}),
    "running": ([f"+config_paths=[{VLLM}, {environment('simple_weather')}]"], {"policy_model": "vllm_model"}),
    "newlines": (
        [f"+config_paths=[\n    {environment('multineedle')},\n    {VLLM}\n]"],
        {"policy_model": "vllm_model"},
    ),
    "verify": (
        [f"+config_paths=[\n    {environment('simple_task', 'simple')},\n    {VLLM}\n]"],
        {"policy_model": "vllm_model"},
    ),
    "location": (
        [
            f"+config_paths=[{VLLM}]",
            "+policy_model.vllm_model.base_url=http://gpu-server:10240/v1",
            "+policy_model.vllm_model.model_name=Qwen/Qwen3-30B-A3B",
        ],
        {"policy_model": "vllm_model"},
    ),
    "training": (
        [f"+config_paths=[{VLLM}]", "+policy_model.vllm_model.return_token_id_information=true"],
        {"policy_model": "vllm_model"},
    ),
    "judge": (
        [f"+config_paths=[{VLLM},{JUDGE},{environment('equivalence_llm_judge')}]"],
        {"policy_model": "vllm_model", "judge_model": "vllm_model"},
    ),
    "before": (
        [f"+config_paths=[{OPENAI},{environment('simple_weather')}]"],
        {"policy_model": "openai_model"},
    ),
    "after": ([f"+config_paths=[{VLLM},{environment('simple_weather')}]"], {"policy_model": "vllm_model"}),
    "one node": (
        [f"+config_paths=[{environment('simple_weather')},{INSTRUCT}]"],
        {"Qwen3-30B-A3B-Instruct-2507": "local_vllm_model"},
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


@pytest.fixture
def written(write) -> None:
    """What the documents tell a reader to have: env.yaml, and configs of environments."""
    write("env.yaml", ENV)
    for name, file in (
        ("example_multi_step", None),
        ("simple_weather", None),
        ("multineedle", None),
        ("simple_task", "simple"),
        ("equivalence_llm_judge", None),
    ):
        write(environment(name, file), "")  # its model servers are what matters here


@pytest.mark.parametrize(("argv", "servers"), COMMANDS.values(), ids=COMMANDS)
@pytest.mark.usefixtures("written")
def test_a_published_command_gives_the_servers_that_it_names(load, argv, servers):
    config = load(*argv)

    assert {server.name: server.implementation for server in config.servers} == servers


@pytest.mark.parametrize(("argv", "servers"), COMMANDS.values(), ids=COMMANDS)
@pytest.mark.usefixtures("written")
def test_a_published_command_can_be_tried_on_a_cluster_described_by_hand(
    monkeypatch, tmp_path, capsys, argv, servers
):
    monkeypatch.chdir(tmp_path)

    assert run([*argv, "+dry_run=true", "+cluster=2x8"]) == 0
    shown = capsys.readouterr().out
    assert all(f"/{name}/v1" in shown for name in servers)
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
