"""What is asked of a real engine through the product, and what it must answer: text, tool call, reasoning, token ids.

The default model's template decides its answers: `ECHO:text` gives the text, `THINK:a|b` reasons a and answers b.
"""

from __future__ import annotations

import json

import pytest
from ng_run_process import KEY, NgRun
from openai import OpenAI

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}

# One server with an engine of its own, of TP={size}.
SERVER = """
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
        tensor_parallel_size: {size}
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
