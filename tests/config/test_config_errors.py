"""What wrong command lines are answered with: the exact lines, all of them at once. Files: test_wrong_files.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

PATH = "policy_model.responses_api_models.local_vllm_model"
FLAGS = f"{PATH}.vllm_serve_kwargs"
ENGINE = "policy_model.local_vllm_model.vllm_serve_kwargs"

WORDS = {
    "+http_prt=3": "http_prt: unknown key; did you mean `http_port`?",
    "+polcy_model.responses_api_models.local_vllm_model.debug=true": (
        "polcy_model.responses_api_models.local_vllm_model.debug: unknown key; did you mean `policy_model`?"
    ),
    "+http_port=x": "http_port: must be a whole number, not 'x'",
    "+http_port=0": "http_port: must be at least 1, not 0",
    "+cluster=4x8": "cluster: describes machines to draw a plan on: add +dry_run=true, or leave it out",
    "+polcy_model.local_vllm_model.debug=true": (
        "polcy_model.local_vllm_model.debug: unknown key; did you mean `policy_model`?"
    ),
    "+policy_model.local_vllm_modl.debug=true": (
        "policy_model.local_vllm_modl: unknown key; did you mean `local_vllm_model`?"
    ),
    "+policy_model.num_workers=2": (
        "policy_model.num_workers: unknown key; did you mean `policy_model.local_vllm_model.num_workers`?"
    ),
    "+policy_model.vllm_model.model=x": (
        "policy_model: has 2 implementations, local_vllm_model and vllm_model: keep one"
    ),
    "+policy_model.local_vllm_model.num_wrkers=2": (
        f"{PATH}.num_wrkers: unknown key; did you mean `num_workers`?"
    ),
    "+policy_model.local_vllm_model.num_workers=true": f"{PATH}.num_workers: must be a number, not true",
    "+policy_model.local_vllm_model.debug=often": f"{PATH}.debug: must be true or false, not 'often'",
    "+policy_model.local_vllm_model.context_overflow=cut": (
        f"{PATH}.context_overflow: must be 'error' or 'incomplete', not 'cut'"
    ),
    "+policy_model.local_vllm_model.base_url=http://a/v1": (
        f"{PATH}.base_url: must not be set here; it is filled in once the engine is up"
    ),
    "+policy_model.local_vllm_model.response_store=memry": (
        f"{PATH}.response_store: must be memory, none, or the path of an SQLite file (.db, .sqlite, .sqlite3), "
        "not 'memry'"
    ),
    "+policy_model.local_vllm_model={is_responses_native:true,direct_responses:true}": (
        f"{PATH}.direct_responses: takes the place of what is_responses_native: true asks for: choose one"
    ),
    f"+{PATH}.vllm_serve_env_vars.LOCAL_VLLM_DIRECT_RESPONSES=x": (
        f"{PATH}.vllm_serve_env_vars.LOCAL_VLLM_DIRECT_RESPONSES: "
        f"must not be set here; write `direct_responses: true` of the server, one level up"
    ),
    "+policy_model.local_vllm_model={is_responses_native:true,response_store:/tmp/a.db}": (
        f"{PATH}.response_store: does nothing with is_responses_native: true: who is asked keeps the responses; "
        "leave it out"
    ),
    "+policy_model.local_vllm_model.reasoning_tags=[a,a]": (
        f"{PATH}.reasoning_tags: must be two different tags, the opening and the closing one, not ['a', 'a']"
    ),
    "+policy_model.local_vllm_model.tokenizer=a/b": (
        f"{PATH}.tokenizer: is for use_completions_api: true, and does nothing without it"
    ),
    "+policy_model.local_vllm_model.model=${x.y}": (
        f"{PATH}.model: `${{x.y}}` leads nowhere: set x.y in env.yaml, or on the command line as +x.y=..."
    ),
    "~policy_model.local_vllm_model.modl": f"{PATH}.modl: is not there to be removed; did you mean `model`?",
    f"~{FLAGS}.tensor_parallel_size": (
        f"{FLAGS}.tensor_parallel_size: is required: GPUs that share each layer of a copy (TP)."
    ),
    f"+{FLAGS}.tensor_parallel_size=0": f"{FLAGS}.tensor_parallel_size: must be at least 1, not 0",
    f"+{FLAGS}.data_parallel_size=two": f"{FLAGS}.data_parallel_size: must be a whole number, not 'two'",
    f"~{PATH}.vllm_serve_kwargs": (
        f"{FLAGS}: is required: Flags of vllm serve: the three sizes below, and any other."
    ),
    f"+{ENGINE}.max_modl_len=1": (
        f"{FLAGS}.max_modl_len: vLLM 0.32.0 has no flag --max-modl-len; did you mean `max_model_len`?"
    ),
    f"+{ENGINE}.model=x": (
        f"{FLAGS}.model: must not be set here; write it as `model` of the server, one level up"
    ),
    f"+{ENGINE}.host=x": f"{FLAGS}.host: must not be set here; the engine's own launch sets it to 0.0.0.0",
    f"+{ENGINE}.port=1": (
        f"{FLAGS}.port: "
        f"must not be set here; the engine's own launch sets it to a free port of the node it runs on"
    ),
    f"+{ENGINE}.api-key=1": (
        f"{FLAGS}.api_key: must not be set here; write it as `api_key` of the server, one level up"
    ),
    f"+{ENGINE}.download_dir=x": (
        f"{FLAGS}.download_dir: must not be set here; it follows from `hf_home` of the server: set that"
    ),
    f"+{ENGINE}.data_parallel_backend=mp": (
        f"{FLAGS}.data_parallel_backend: must not be set here; the engine's own launch sets it to ray"
    ),
    f"+{ENGINE}.distributed_executor_backend=mp": (
        f"{FLAGS}.distributed_executor_backend: must not be set here; the engine's own launch sets it to ray"
    ),
    f"+{ENGINE}.enforce_eager=7": f"{FLAGS}.enforce_eager: is a switch: true or false, not 7",
    f"+{ENGINE}.max_model_len=true": f"{FLAGS}.max_model_len: takes a value, not true",
    f"~{PATH}.vllm_serve_env_vars.VLLM_RAY_DP_PACK_STRATEGY": (
        f"{PATH}.vllm_serve_env_vars.VLLM_RAY_DP_PACK_STRATEGY: "
        f"is required: strict (a copy on one node), fill, or span (a copy over nodes)"
    ),
    f"+{PATH}.vllm_serve_env_vars.VLLM_RAY_DP_PACK_STRATEGY=loose": (
        f"{PATH}.vllm_serve_env_vars.VLLM_RAY_DP_PACK_STRATEGY: "
        f"must be one of strict, fill and span, not 'loose'"
    ),
    f"+{PATH}.vllm_serve_env_vars.VLLM_API_KEY=x": (
        f"{PATH}.vllm_serve_env_vars.VLLM_API_KEY: "
        f"must not be set here; write it as `api_key` of the server, one level up"
    ),
    f"+{PATH}.vllm_serve_env_vars.VLLM_DP_SIZE=2": (
        f"{PATH}.vllm_serve_env_vars.VLLM_DP_SIZE: "
        f"must not be set here; write it as `data_parallel_size` of vllm_serve_kwargs"
    ),
    f"+{PATH}.vllm_serve_env_vars.VLLM_DP_RANK=0": (
        f"{PATH}.vllm_serve_env_vars.VLLM_DP_RANK: must not be set here; vLLM numbers its ranks itself"
    ),
    f"+{PATH}.vllm_serve_env_vars.VLLM_HOST_IP=10.0.0.1": (
        f"{PATH}.vllm_serve_env_vars.VLLM_HOST_IP: must not be set here; the placement plan sets it"
    ),
    f"+{PATH}.vllm_serve_env_vars.VLLM_DP_MASTER_PORT=1": (
        f"{PATH}.vllm_serve_env_vars.VLLM_DP_MASTER_PORT: must not be set here; vLLM takes a free one"
    ),
    f"+{PATH}.vllm_serve_env_vars.VLLM_CONFIG_ROOT=/x": (
        f"{PATH}.vllm_serve_env_vars.VLLM_CONFIG_ROOT: "
        f"must not be set here; the engine's own launch sets it, to keep secrets out of Ray's state"
    ),
    f"+{ENGINE}.enable_elastic_ep=true": (
        f"{FLAGS}.enable_elastic_ep: "
        f"must not be on: the number of ranks would change, and the placement plan is made once"
    ),
    f"+{ENGINE}.enable-fault-tolerance=true": (
        f"{FLAGS}.enable_fault_tolerance: "
        f"must not be on: vLLM refuses it unless an external load balancer stands before its ranks"
    ),
    f"+{ENGINE}.api_server_count=0": (
        f"{FLAGS}.api_server_count: must be at least 1, not 0: nothing would answer"
    ),
    f"+{ENGINE}.prefill_context_parallel_size=0": (
        f"{FLAGS}.prefill_context_parallel_size: must be at least 1, not 0"
    ),
    "+config_paths=1": "config_paths: must be a list of files, such as [a.yaml,b.yaml], not 1",
    "a b": (
        "command line: "
        "`a b` cannot be read (token recognition error at: "
        "' '); write key=value, +key=value, ++key=value or ~key"
    ),
    "--http-port=3": (
        "command line: `--http-port=3` cannot be read (token recognition error at: '-'); write +http_port=3"
    ),
    "a.yaml": (
        "command line: `a.yaml` cannot be read (missing EQUAL at '<EOF>'); write +config_paths=[a.yaml]"
    ),
    "+limit=1,2": "command line: `+limit=1,2`: several values without brackets: write [a,b] for a list",
    "+hf_home=~/x": (
        "command line: "
        "`+hf_home=~/x` cannot be read (token recognition error at: '~'); quote the value: '+hf_home=\"...\"'"
    ),
    "+hf_token=~sk-1": (
        "command line: "
        "`+hf_token=...` cannot be read (not Hydra's grammar); quote the value: '+hf_token=\"...\"'"
    ),
    "a@b=3": "command line: `a@b=3`: `@` chooses a package of a Hydra config group, and there are none here",
}


@pytest.mark.parametrize(("word", "line"), WORDS.items(), ids=WORDS)
def test_a_wrong_word_is_answered_with_one_line(problems, word, line):
    assert problems(word) == [line]


@pytest.mark.parametrize("setting", ["response_store=memory", "response_store=none", "response_store_max_mib=9"])
def test_an_openai_model_has_no_response_store_of_ours(problems, setting):
    env = ["+policy_base_url=http://a/v1", "+policy_api_key=k", "+policy_model_name=m"]
    key = setting.partition("=")[0]
    assert problems("+config_paths=[openai_model.yaml]", *env, f"+policy_model.openai_model.{setting}") == [
        f"policy_model.responses_api_models.openai_model.{key}: is not for an openai_model: who is asked keeps the "
        "responses; leave it out"
    ]


@pytest.mark.parametrize("backend", ["deepep_high_throughput", "deepep_low_latency"])
def test_an_all2all_backend_that_needs_whole_nodes_is_refused_under_fill_as_by_vllm(problems, load, backend):
    words = [f"+{ENGINE}.all2all_backend={backend}", f"+{PATH}.vllm_serve_env_vars.VLLM_RAY_DP_PACK_STRATEGY="]

    assert problems(words[0], f"{words[1]}fill") == [
        f"{FLAGS}.all2all_backend: {backend} needs its ranks eight by eight on a node, which "
        "VLLM_RAY_DP_PACK_STRATEGY=fill does not promise, and vLLM refuses it: write strict"
    ]
    load(words[0], f"{words[1]}strict")


def test_a_switch_that_is_refused_may_be_off(load):
    load(f"+{ENGINE}.enable_elastic_ep=false")


def test_a_model_and_config_paths_together_are_one_too_many(problems):
    assert problems("+model=Qwen/Qwen3-4B", "+config_paths=[quickstart.yaml]") == [
        "model: chooses a shipped config, and so does config_paths: give one of the two"
    ]


def test_policy_model_is_ambiguous_with_two_models(problems):
    assert problems(
        "+config_paths=[Qwen/Qwen3-4B.yaml,Qwen/Qwen3.5-27B.yaml]",
        "+policy_model.local_vllm_model.debug=true",
    ) == ["policy_model.local_vllm_model.debug: could be any of Qwen3-4B, Qwen3_5-27B: name one"]


def test_everything_that_is_wrong_is_told_at_once(problems):
    lines = problems(
        "+http_prt=1",
        "+limit=none",
        f"+{ENGINE}.port=1",
        f"+{ENGINE}.tensor_paralel_size=2",
        "+policy_model.local_vllm_model.num_wrkers=3",
        "a b",
    )

    assert len(lines) == 6


def test_a_typo_is_told_within_three_seconds_without_the_heavy_imports(write, tmp_path):
    program = (
        "import sys, pathlib\n"
        "from local_vllm.config.compose import load_run_config\n"
        "from local_vllm.errors import ConfigError\n"
        "try:\n"
        "    load_run_config(['+http_prt=1'], cwd=pathlib.Path.cwd())\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
        "print([name for name in ('ray', 'vllm', 'torch', 'transformers') if name in sys.modules])\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    took_s = time.monotonic() - started

    assert done.stdout.splitlines() == ["http_prt: unknown key; did you mean `http_port`?", "[]"], done.stderr
    assert took_s < 3
