"""A real vLLM asked through /v1/completions, with a chat template applied here: what comes is what chat gives."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from engine_answers import engine_url
from ng_run_process import KEY, NgRun, until
from openai import OpenAI

from local_vllm.config.schema import VLLMModelSettings
from local_vllm.serving.replica import Replica
from local_vllm.serving.vllm_model import VLLMModel

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

MODEL = "local-vllm-default"
TOKENS = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")


@pytest.fixture(scope="module")
def base(run: NgRun) -> Iterator[OpenAI]:
    """A server that speaks to the run's engine as to that of a base model."""
    settings = VLLMModelSettings(
        base_url=engine_url(run, "policy_model"),
        api_key=KEY,
        model=MODEL,
        use_completions_api=True,
        render_chat_template=True,
        return_token_id_information=True,
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = VLLMModel("base_model", settings, Replica(b"secret"))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            assert until(lambda: server.started, 30)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            yield OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
        finally:
            server.should_exit = True
            thread.join(30)


def said(client: OpenAI, text: str, *, stream: bool, **fields: Any) -> Any:
    if not stream:
        return client.responses.create(model=MODEL, input=text, **fields)
    return list(client.responses.create(model=MODEL, input=text, stream=True, **fields))[-1].response


@pytest.mark.parametrize("stream", [False, True])
def test_text_and_tokens_are_those_of_chat(run: NgRun, base: OpenAI, stream: bool) -> None:
    ours, chat = said(base, "ECHO:Grüße", stream=stream), said(run.client(), "ECHO:Grüße", stream=False)
    assert ours.output_text.strip() == chat.output_text == "Grüße"
    assert ours.usage.output_tokens == chat.usage.output_tokens
    for name in TOKENS:
        assert getattr(ours.output[-1], name) == pytest.approx(getattr(chat.output[-1], name), abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_found_in_the_text(base: OpenAI, stream: bool) -> None:
    answer = said(base, "THINK:two and two|four", stream=stream)
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].content[0].text.strip() == "two and two"
    assert answer.output_text.strip() == "four"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_come_with_the_text(base: OpenAI, stream: bool) -> None:
    include = ["message.output_text.logprobs"]
    answer = said(base, "ECHO:abc", stream=stream, include=include, top_logprobs=2)
    listed = answer.output[-1].content[0].logprobs
    assert "".join(entry.token for entry in listed).strip() == "abc"
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in listed)


def test_chat_is_streamed_token_by_token(base: OpenAI) -> None:
    messages = [{"role": "user", "content": "REPEAT:50"}]
    usage = {"include_usage": True}
    stream = base.chat.completions.create(
        model=MODEL, messages=messages, stream=True, stream_options=usage, logprobs=True
    )
    *chunks, last = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks]
    assert "".join(texts).count("word") == 50
    assert len(texts) > 10
    assert chunks[0].choices[0].delta.role == "assistant"
    assert sum(len(chunk.choices[0].logprobs.content) for chunk in chunks) == last.usage.completion_tokens


def test_a_limit_above_the_context_is_cut_to_what_fits(run: NgRun, base: OpenAI) -> None:
    for client in (run.client(), base):
        for stream in (False, True):
            answer = said(client, "ECHO:abc", stream=stream, max_output_tokens=10_000_000)
            assert (answer.status, answer.output_text.strip()) == ("completed", "abc")


def test_a_limit_ends_a_base_model_s_answer(base: OpenAI) -> None:
    for stream in (False, True):
        answer = said(base, "REPEAT:50", stream=stream, max_output_tokens=5)
        assert (answer.status, answer.usage.output_tokens) == ("incomplete", 5)
