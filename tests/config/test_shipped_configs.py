"""Every config file that is shipped: it is right by the schema, by vLLM's own parser, and by its name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from local_vllm.config.compose import load_run_config
from local_vllm.config.lookup import shipped_configs, shipped_names
from local_vllm.config.schema import LocalVLLMModelSettings, ServerConfig
from local_vllm.config.vllm_serve_flags import to_argv

ENV = "".join(
    f"{role}_base_url: http://a:1/v1\n{role}_api_key: k\n{role}_model_name: some/model\n"
    for role in ("policy", "judge")
)
MODEL_FILES = [name for name in shipped_names() if "/" in name or name.startswith(("Llama", "Mistral"))]
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
for argv in json.load(sys.stdin):
    parser.parse_args(argv)
"""


def servers_of(name: str, cwd: Path) -> tuple[ServerConfig, ...]:
    """The servers of a shipped file; a proxy gets the engine that it needs."""
    (cwd / "env.yaml").write_text(ENV)
    before = "quickstart.yaml," if "proxy" in name else ""
    return load_run_config([f"+config_paths=[{before}{name}]"], cwd=cwd).servers


def test_the_configs_that_are_promised_are_there():
    assert {
        "quickstart.yaml",
        "local_vllm_base_model.yaml",
        "local_vllm_model.yaml",
        "local_vllm_model_proxy.yaml",
        "openai_model.yaml",
        "vllm_judge_model.yaml",
        "vllm_model.yaml",
        "vllm_model_for_training.yaml",
        "Qwen/Qwen3-30B-A3B-Instruct-2507.yaml",
        "Qwen/Qwen3-30B-A3B-Thinking-2507.yaml",
        "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8.yaml",
        "openai/gpt-oss-20b-reasoning-low.yaml",
        "openai/gpt-oss-120b-reasoning-high.yaml",
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.yaml",
    } <= set(shipped_names())


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_config_is_valid(name, tmp_path):
    assert servers_of(name, tmp_path)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_the_config_of_a_model_defines_one_server_of_its_name_for_eight_gpus(name, tmp_path):
    (server,) = servers_of(name, tmp_path)
    sizes = server.settings.vllm_serve_kwargs

    assert server.name == Path(name).stem.replace(".", "_")
    assert Path(name).stem.startswith(server.settings.model.rpartition("/")[2])
    assert (sizes.data_parallel_size, sizes.tensor_parallel_size, sizes.pipeline_parallel_size) == (1, 8, 1)
    assert server.settings.pack_strategy == "strict"


@pytest.mark.parametrize("name", MODEL_FILES)
def test_the_overrides_in_a_comment_of_a_config_work(name, tmp_path):
    (tmp_path / "env.yaml").write_text(ENV)
    lines = (shipped_configs() / name).read_text().splitlines()
    overrides = [line.strip("# ") for line in lines if line.startswith("#   ++")]

    (server,) = load_run_config([f"+config_paths=[{name}]", *overrides], cwd=tmp_path).servers

    sizes = server.settings.vllm_serve_kwargs
    assert (sizes.data_parallel_size, sizes.tensor_parallel_size) == (2, 4)


@pytest.mark.parametrize("before", ["openai_model", "vllm_model", "vllm_model_for_training"])
def test_one_env_yaml_serves_every_model_server_that_is_switched_to(before, tmp_path):
    (server,) = servers_of(
        f"responses_api_models/{before.partition('_for')[0]}/configs/{before}.yaml", tmp_path
    )

    assert (server.name, server.settings.model) == ("policy_model", "some/model")
    assert server.settings.base_url == ("http://a:1/v1",)


def test_the_training_config_asks_for_token_ids(tmp_path):
    (server,) = servers_of("vllm_model_for_training.yaml", tmp_path)

    assert server.settings.return_token_id_information
    assert server.settings.context_overflow == "incomplete"


@pytest.mark.engine
def test_vllm_reads_the_flags_of_every_shipped_config_and_of_every_shape(tmp_path):
    from_files = [
        server.settings.vllm_serve_kwargs.flags()
        for name in shipped_names()
        for server in servers_of(name, tmp_path)
        if isinstance(server.settings, LocalVLLMModelSettings)
    ]
    shapes = {
        "max_model_len": -1,
        "gpu_memory_utilization": 0.9,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "compilation_config": {"mode": 1, "backend": "eager"},
        "served_model_name": ["a", "b"],
        "middleware": ["a.b", "c.d"],
        "allowed_origins": ["*"],
        "disable_access_log_for_endpoints": ["/health", "/x"],
        "cudagraph_capture_sizes": [1, 2],
        "limit_mm_per_prompt": {"image": 2},
        "override_generation_config": {"temperature": 0.5},
    }
    argvs = [["--model", "m", *to_argv(flags)] for flags in (*from_files, shapes)]
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(argvs), capture_output=True, text=True, timeout=280
    )

    assert len(argvs) > 15
    assert done.returncode == 0, done.stderr[-2000:]
