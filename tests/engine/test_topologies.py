"""Every single-node topology on a real engine: the same answers, the same token ids, and nothing left after."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from ng_run_process import KEY, NgRun, running
from openai import OpenAI

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

SETTINGS = "++policy_model.responses_api_models.local_vllm_model"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}

TOPOLOGIES = {
    "DP=2": {"data_parallel_size": 2},
    "TP=2": {"tensor_parallel_size": 2},
    "PP=2": {"pipeline_parallel_size": 2},
    "DP=2 TP=2": {"data_parallel_size": 2, "tensor_parallel_size": 2},
    "TP=8": {"tensor_parallel_size": 8},
}

# One of them without vLLM's reasoning parser: the reasoning is then found in the text.
WITHOUT_REASONING_PARSER = {
    "TP=2": [
        f"{SETTINGS}.vllm_serve_kwargs.reasoning_parser=null",
        f"{SETTINGS}.vllm_serve_kwargs.default_chat_template_kwargs={{plain_answers: true}}",
    ]
}

TWO_INSTANCES = """
{name}:
  responses_api_models:
    local_vllm_model:
      model: local-vllm-default
      api_key: {key}
      return_token_id_information: true
      vllm_serve_env_vars:
        VLLM_RAY_DP_PACK_STRATEGY: strict
      vllm_serve_kwargs:
        data_parallel_size: 1
        tensor_parallel_size: 4
        pipeline_parallel_size: 1
        max_model_len: 8192
        max_num_seqs: 16
        dtype: float32
        enable_auto_tool_choice: true
        tool_call_parser: hermes
        reasoning_parser: qwen3
"""


def check_text(client: OpenAI) -> None:
    answer = client.responses.create(model="local-vllm-default", input="ECHO:Grüße from the engine")
    assert answer.output_text == "Grüße from the engine"
    assert answer.status == "completed"
    assert answer.usage.output_tokens > 0


def check_tool_call(client: OpenAI) -> None:
    question = {"role": "user", "content": "What is the weather in Paris?"}
    answer = client.responses.create(model="local-vllm-default", input=[question], tools=[WEATHER])
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees, clear sky"}
    final = client.responses.create(
        model="local-vllm-default", input=[question, call.model_dump(exclude_none=True), result], tools=[WEATHER]
    )
    assert "18 degrees, clear sky" in final.output_text


def check_reasoning(client: OpenAI) -> None:
    answer = client.responses.create(model="local-vllm-default", input="THINK:two and two|four")
    reasoning = next(item for item in answer.output if item.type == "reasoning")
    texts = [part.text for part in (reasoning.content or reasoning.summary)]
    assert "two and two" in "".join(texts)
    assert answer.output_text.strip() == "four"


def check_token_ids(client: OpenAI, engine_url: str) -> None:
    """The ids and log probabilities of a turn are those that vLLM itself returns for the same request."""
    direct = OpenAI(base_url=engine_url, api_key=KEY, max_retries=0, timeout=120).chat.completions.create(
        model="local-vllm-default",
        messages=[{"role": "user", "content": "ECHO:exact ids"}],
        logprobs=True,
        extra_body={"return_token_ids": True},
    )
    item = client.responses.create(model="local-vllm-default", input="ECHO:exact ids").output[-1]
    assert item.prompt_token_ids == direct.prompt_token_ids
    assert item.generation_token_ids == direct.choices[0].token_ids
    expected = [token.logprob for token in direct.choices[0].logprobs.content]
    assert item.generation_log_probs == pytest.approx(expected, abs=1e-4)
    assert len(item.generation_log_probs) == len(item.generation_token_ids) > 0


def engine_url(run: NgRun, server: str) -> str:
    config = run.client(server)._client.get(f"{run.url}/{server}/get_inner_vllm_config").json()
    assert config["api_key"] == "***", "the engine's key is not shown"
    return config["base_url"][0]


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_an_engine_of_each_topology_answers_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    sizes = [f"{SETTINGS}.vllm_serve_kwargs.{size}={value}" for size, value in TOPOLOGIES[name].items()]
    training = [f"{SETTINGS}.return_token_id_information=true", f"{SETTINGS}.api_key={KEY}"]
    with running(tmp_path, *sizes, *training, *WITHOUT_REASONING_PARSER.get(name, [])) as run:
        client = run.client()
        check_text(client)
        check_tool_call(client)
        check_reasoning(client)
        check_token_ids(client, engine_url(run, "policy_model"))
        assert KEY not in run.text()
        assert not any(KEY in " ".join(process.cmdline()) for process in run.processes())
        assert run.stop() == 0
        assert run.leftovers() == []


def test_two_instances_of_tp_4_share_one_8_gpu_node(tmp_path: Path) -> None:
    for name in ("left", "right"):
        (tmp_path / f"{name}.yaml").write_text(TWO_INSTANCES.format(name=name, key=KEY))
    with running(tmp_path, "+config_paths=[left.yaml, right.yaml]", "+logical_gpus=8") as run:
        assert run.free_gpus_and_groups() == (0, 2)
        for name in ("left", "right"):
            client = run.client(name)
            check_text(client)
            check_tool_call(client)
            check_reasoning(client)
            check_token_ids(client, engine_url(run, name))
        assert run.stop(signal.SIGTERM) == 0
        assert run.leftovers() == []
