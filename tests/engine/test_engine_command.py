"""The command line and the environment of an engine, as values: nothing is started."""

from __future__ import annotations

import importlib
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from local_vllm.engine import cpu_flags
from local_vllm.engine.command import DIRECT_MIDDLEWARE, Site, our_environment, serve_command, serve_environment
from local_vllm.engine.log import LogReader, phase_of
from local_vllm.engine.spec import DIRECT_VARIABLE, EngineSpec
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import plan_placements
from local_vllm.plan.topology import PackStrategy, Topology
from local_vllm.serving.direct import DirectResponses

NODE = Node("n1", "10.0.0.7", 8, 8, 64.0, 64.0)


def spec(dp: int = 1, tp: int = 1, pp: int = 1, **more: object) -> EngineSpec:
    topology = Topology("policy_model", dp, tp, pp, PackStrategy.STRICT)
    (placement,) = plan_placements(Cluster((NODE,)), [topology])
    values: dict = {
        "run_id": "r1",
        "server": "policy_model",
        "model": "org/model",
        "served_name": "org/model",
        "api_key": "secret-key",
        "vllm_serve_kwargs": {"max_model_len": 4096, "gpu_memory_utilization": 0.9},
        "vllm_serve_env_vars": {"VLLM_RAY_DP_PACK_STRATEGY": "strict", "NCCL_DEBUG": "INFO"},
        "placement": placement,
        "hf_home": Path("/cache"),
        "hf_token": "hf_secret",
        "show_stats": False,
        "debug": False,
        "start_timeout_s": 60,
        "log_path": Path("/logs/policy_model.log"),
    }
    return EngineSpec(**values | more)


def site(kind: str = "gpu", **environment: str) -> Site:
    config = {"num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 1, "head_dim": 32}
    return Site(kind, 20001, "10.0.0.7", "10.0.0.1:6379", "org/model", config, Path("/scratch"), environment)


def test_the_command_line_has_the_flags_that_we_set_and_those_of_the_config() -> None:
    words = serve_command(spec(dp=2, tp=4), site())
    text = " ".join(words)
    for part in (
        "serve org/model",
        "--served-model-name org/model",
        "--host 0.0.0.0",
        "--port 20001",
        "--distributed-executor-backend ray",
        "--data-parallel-backend ray",
        "--download-dir /cache/hub",
        "--data-parallel-size 2",
        "--tensor-parallel-size 4",
        "--max-model-len 4096",
        "--api-server-count 2",
    ):
        assert part in text
    assert "secret" not in text


def test_secrets_stand_in_the_environment_only_and_in_no_repr() -> None:
    environment = serve_environment(spec(), site())
    assert environment["VLLM_API_KEY"] == "secret-key"
    assert environment["HF_TOKEN"] == "hf_secret"
    assert "secret" not in repr(spec())


def test_an_engine_inherits_no_identity_of_the_ray_worker_that_launches_it() -> None:
    inherited = {"RAY_JOB_ID": "01", "RAY_AUTH_MODE": "token", "CUDA_VISIBLE_DEVICES": "", "PATH": "/bin"}
    inherited |= {"VLLM_DP_SIZE": "4", "VLLM_DP_RANK": "1", "VLLM_DP_RANK_LOCAL": "1", "VLLM_DP_MASTER_PORT": "9"}
    environment = serve_environment(spec(), site(**inherited))
    assert "RAY_JOB_ID" not in environment
    assert "CUDA_VISIBLE_DEVICES" not in environment
    assert {name for name in environment if name.startswith("VLLM_DP_")} == {"VLLM_DP_MASTER_IP"}
    assert (environment["RAY_AUTH_MODE"], environment["PATH"]) == ("token", "/bin")
    assert environment["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert environment["VLLM_DP_MASTER_IP"] == "10.0.0.7"


@pytest.mark.parametrize(
    ("show", "debug", "name", "value"),
    [
        (True, False, "VLLM_LOG_STATS_INTERVAL", None),
        (False, False, "VLLM_LOG_STATS_INTERVAL", "31536000"),
        (False, True, "VLLM_LOGGING_LEVEL", "DEBUG"),
        (False, False, "VLLM_LOGGING_LEVEL", None),
    ],
)
def test_statistics_and_debug_lines_are_logged_when_asked_for(
    show: bool, debug: bool, name: str, value: str | None
) -> None:
    assert serve_environment(replace(spec(), show_stats=show, debug=debug), site()).get(name) == value


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, []), ({"middleware": "a.B"}, ["a.B"]), ({"middleware": ["a.B", "c.d"]}, ["a.B", "c.d"])],
)
@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_the_direct_way_is_a_middleware_before_those_of_the_config(
    given: dict[str, object], expected: list[str], kind: str
) -> None:
    asked = spec(vllm_serve_kwargs=given, direct_responses={"server": "policy_model"})
    words = serve_command(asked, site(kind))
    found = [after for word, after in zip(words, words[1:], strict=False) if word == "--middleware"]
    assert found == [DIRECT_MIDDLEWARE, *expected]
    assert our_environment(asked, site(kind))[DIRECT_VARIABLE] == '{"server": "policy_model"}'


def test_without_the_direct_way_there_is_nothing_of_it() -> None:
    assert "--middleware" not in serve_command(spec(), site())
    assert DIRECT_VARIABLE not in our_environment(spec(), site())


def test_the_middleware_is_what_its_name_says() -> None:
    module, _, name = DIRECT_MIDDLEWARE.rpartition(".")
    assert getattr(importlib.import_module(module), name) is DirectResponses


def test_a_cpu_engine_is_not_compiled_and_one_with_a_pipeline_uses_the_eager_backend() -> None:
    assert "--enforce-eager" in serve_command(spec(tp=2), site("cpu"))
    piped = serve_command(spec(pp=2), site("cpu"))
    assert "--enforce-eager" not in piped
    assert '{"mode": 1, "backend": "eager"}' in " ".join(piped)
    chosen = replace(spec(), vllm_serve_kwargs={"compilation_config": {"mode": 3}})
    assert "--enforce-eager" not in serve_command(chosen, site("cpu"))


def test_a_cpu_engine_has_memory_for_a_sequence_of_the_longest_length() -> None:
    topology = spec(tp=2).placement.topology
    config = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    per_token = 2 * 32 * 4 * 128 * 4  # keys and values, layers, KV heads of one worker, head size, float32
    needed = cpu_flags.sequence_kv_bytes({"max_model_len": 32768, "dtype": "float32"}, topology, config)
    assert 32768 * per_token <= needed <= 1.01 * 32768 * per_token
    assert cpu_flags.flags({}, topology, {})["kv_cache_memory_bytes"] == cpu_flags.SMALLEST_KV_BYTES
    assert "kv_cache_memory_bytes" not in cpu_flags.flags({"kv_cache_memory_bytes": 1}, topology, config)


def test_a_cpu_engine_whose_model_is_not_there_yet_has_a_word_for_its_memory() -> None:
    topology = spec().placement.topology
    assert cpu_flags.flags({}, topology, None)["kv_cache_memory_bytes"] == "<room for two sequences>"
    assert cpu_flags.flags({}, topology, {})["kv_cache_memory_bytes"] == cpu_flags.SMALLEST_KV_BYTES


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("INFO model_runner.py: Starting to load model org/model...", "loading weights"),
        ("INFO Creating placement groups for data parallel", "starting workers"),
        ("INFO Available KV cache memory: 20.5 GiB", "sizing the KV cache"),
        ("INFO Graph capturing finished in 20 secs", "capturing CUDA graphs"),
        ("INFO Enforce eager set, disabling torch.compile and CUDAGraphs", None),
        ("INFO: nothing of interest", None),
    ],
)
def test_a_line_of_the_log_tells_the_phase(line: str, phase: str | None) -> None:
    assert phase_of(line) == phase


def test_the_tail_of_a_log_has_only_this_launch_and_no_noise(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("an earlier launch\n")
    reader = LogReader(log)
    with log.open("a") as more:
        more.write("\x1b[36m(Worker pid=7)\x1b[0m ValueError: no such parser\n\nINFO:     Application startup complete.\nRoute: /health, Methods: GET\n")
    assert reader.tail() == "(Worker pid=7) ValueError: no such parser"


@pytest.mark.parametrize(("dp", "flags", "share"), [(1, {}, False), (2, {}, True), (2, {"api-server-count": 1}, False)])
def test_what_several_api_servers_count_together_is_in_the_folder_of_its_processes(
    dp: int, flags: dict[str, int], share: bool
) -> None:
    of = spec(dp=dp, vllm_serve_kwargs=flags)
    told = serve_environment(of, site()).get("PROMETHEUS_MULTIPROC_DIR")
    assert told == (str(of.members) if share else None)


@pytest.mark.parametrize(("server", "are_in_the_folder"), [("policy_model", True), ("p" * 80, False)])
def test_vllms_sockets_are_in_the_folder_of_its_processes_where_their_paths_can_be_so_long(
    server: str, are_in_the_folder: bool
) -> None:
    of = spec(server=server)
    told = serve_environment(of, site()).get("VLLM_RPC_BASE_PATH")
    assert told == (str(of.members) if are_in_the_folder else None)
    assert not are_in_the_folder or len(f"{told}/{uuid.uuid4()}") <= 107
