"""The model servers under the names of the configuration, built from checked settings."""

from __future__ import annotations

import json

import aiohttp
import openai
import pytest
from servers_under_test import SECRET, over
from stand_in_engine import MODEL, StandInEngine, serving

from local_vllm.config.schema import (
    LocalVLLMModelProxySettings,
    LocalVLLMModelSettings,
    OpenAIModelSettings,
    VLLMModelSettings,
)
from local_vllm.errors import PlacementError
from local_vllm.serving.local_vllm_model import LocalVLLMModel
from local_vllm.serving.local_vllm_model_proxy import LocalVLLMModelProxy
from local_vllm.serving.model_server import ModelServer
from local_vllm.serving.openai_model import OpenAIModel
from local_vllm.serving.replica import Replica
from local_vllm.serving.vllm_model import VLLMModel

pytestmark = pytest.mark.timeout(30)


def sizes(**further: object) -> dict[str, object]:
    one = {"data_parallel_size": 1, "tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    return {
        "model": "org/Model",
        "vllm_serve_kwargs": one | further,
        "vllm_serve_env_vars": {"VLLM_RAY_DP_PACK_STRATEGY": "strict"},
    }


async def said(server: ModelServer) -> str:
    async with serving(server) as address, openai.AsyncOpenAI(
        base_url=f"{address}/v1", api_key="x", max_retries=0, timeout=10
    ) as client:
        return (await client.responses.create(model="any", input="Hi")).output_text


async def test_a_vllm_model_asks_the_engine_of_its_settings(one_engine: StandInEngine) -> None:
    settings = VLLMModelSettings.model_validate({
        "base_url": one_engine.base_url, "api_key": "sk-1", "model": MODEL,
        "sampling_overrides": {"temperature": 0.25}, "default_headers": {"x-team": "blue"},
    })  # fmt: skip
    assert await said(VLLMModel("policy_model", settings, Replica(SECRET))) == "Hello"
    asked = one_engine.asked[0]
    assert (asked["body"]["model"], asked["body"]["temperature"]) == (MODEL, 0.25)
    assert (asked["headers"]["authorization"], asked["headers"]["x-team"]) == ("Bearer sk-1", "blue")


@pytest.mark.parametrize(("flags", "asked"), [({}, True), ({"reasoning_parser": "qwen3"}, None)])
async def test_an_engine_of_ours_with_a_reasoning_parser_is_not_asked_for_its_prompt(
    one_engine: StandInEngine, flags: dict[str, str], asked: bool | None
) -> None:
    settings = LocalVLLMModelSettings.model_validate(sizes(**flags))
    await said(LocalVLLMModel("policy_model", settings, Replica(SECRET), source=over(one_engine)))
    assert one_engine.asked[0]["body"].get("return_prompt_text") is asked


async def test_a_local_model_asks_the_engine_of_its_source(one_engine: StandInEngine) -> None:
    settings = LocalVLLMModelSettings.model_validate(sizes())
    server = LocalVLLMModel("policy_model", settings, Replica(SECRET), source=over(one_engine))
    assert (server.model, server.topology.gpus) == ("org/Model", 1)
    assert await said(server) == "Hello"
    assert one_engine.asked[0]["body"]["model"] == MODEL


@pytest.mark.parametrize("direct", [False, True])
async def test_a_local_model_tells_whether_its_engine_answers_as_it_does(
    one_engine: StandInEngine, direct: bool
) -> None:
    settings = LocalVLLMModelSettings.model_validate(sizes() | {"direct_responses": direct})
    async with serving(LocalVLLMModel("policy_model", settings, Replica(SECRET), source=over(one_engine))) as address:
        async with aiohttp.ClientSession() as session, session.get(f"{address}/get_inner_vllm_config") as answer:
            assert (await answer.json())["direct_responses"] is direct


def test_a_local_model_with_sizes_that_make_no_sense_is_refused(one_engine: StandInEngine) -> None:
    settings = LocalVLLMModelSettings.model_validate(sizes(data_parallel_size_local=2))
    with pytest.raises(PlacementError, match="data_parallel_size_local is 2"):
        LocalVLLMModel("policy_model", settings, Replica(SECRET), source=over(one_engine))


async def test_a_proxy_has_request_settings_of_its_own(one_engine: StandInEngine) -> None:
    settings = LocalVLLMModelProxySettings.model_validate(
        {"model_server": "policy_model", "sampling_overrides": {"temperature": 0.5}}
    )
    server = LocalVLLMModelProxy("p", settings, Replica(SECRET), source=over(one_engine), model="org/Model")
    assert await said(server) == "Hello"
    assert one_engine.asked[0]["body"]["temperature"] == 0.5


def openai_model(base_url: str) -> OpenAIModel:
    settings = {"base_url": base_url, "api_key": "sk-real", "model": "gpt-x"}
    return OpenAIModel("policy_model", OpenAIModelSettings.model_validate(settings), Replica(SECRET))


async def test_an_openai_model_changes_nothing_but_the_model(one_engine: StandInEngine) -> None:
    one_engine.body = b'{"id": "resp_1",   "object": "response"}'
    sent = {"input": "Hi", "model": "policy_model", "anything": [1, {"else": None}]}
    async with serving(openai_model(one_engine.base_url)) as address, aiohttp.ClientSession() as session:
        async with session.post(f"{address}/v1/responses", json=sent) as answer:
            assert await answer.read() == one_engine.body
    asked = one_engine.asked[0]
    assert (asked["path"], asked["body"]) == ("/v1/responses", sent | {"model": "gpt-x"})
    assert asked["headers"]["authorization"] == "Bearer sk-real"


async def test_an_openai_model_has_settings_beside_what_was_sent(one_engine: StandInEngine) -> None:
    settings = OpenAIModelSettings(
        base_url=one_engine.base_url,
        api_key="sk-real",
        model="gpt-x",
        extra_body={"max_tokens": 5, "seed": 1},
        sampling_overrides={"temperature": 0.5},
    )
    server = OpenAIModel("policy_model", settings, Replica(SECRET))
    async with serving(server) as address, aiohttp.ClientSession() as session:
        await session.post(f"{address}/v1/responses", json={"input": "Hi", "seed": 2, "temperature": 1})
        await session.post(f"{address}/v1/chat/completions", json={"messages": []})
    decided = {"temperature": 0.5, "model": "gpt-x"}
    assert [asked["body"] for asked in one_engine.asked] == [
        {"input": "Hi", "seed": 2, "max_output_tokens": 5} | decided,
        {"messages": [], "seed": 1, "max_completion_tokens": 5} | decided,
    ]


async def test_an_openai_model_passes_streams_and_errors_on(one_engine: StandInEngine) -> None:
    one_engine.chunks = [b"event: response.created\ndata: {}\n\n", b"event: response.completed\ndata: {}\n\n"]
    error = {"error": {"message": "slow down", "type": "requests", "param": None, "code": "rate"}}
    async with serving(openai_model(one_engine.base_url)) as address, aiohttp.ClientSession() as session:
        async with session.post(f"{address}/v1/responses", json={"stream": True}) as answer:
            assert await answer.read() == b"".join(one_engine.chunks)
        one_engine.status, one_engine.chunks, one_engine.body = 429, None, json.dumps(error).encode()
        async with session.post(f"{address}/v1/responses", json={}) as answer:
            assert (answer.status, await answer.json()) == (429, error)
