"""Prompts of base models, made by a real tokenizer's chat template: the default model's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from servers_under_test import SECRET
from stand_in_engine import StandInEngine, serving
from tokenizers import Tokenizer

from local_vllm.config.schema import VLLMModelSettings
from local_vllm.cpu.default_model import build_default_model
from local_vllm.errors import ConfigError, RequestError
from local_vllm.serving.chat_template import ChatTemplate
from local_vllm.serving.replica import Replica
from local_vllm.serving.vllm_model import VLLMModel

pytestmark = pytest.mark.timeout(60)

HELLO = [{"role": "user", "content": "Hello"}]
SAID = "<|im_start|>user\nHello<|im_end|>\n"
HEADER = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_default_model(tmp_path_factory.mktemp("model") / "default")


@pytest.fixture(scope="module")
def template(model: Path) -> ChatTemplate:
    return ChatTemplate(str(model))


@pytest.fixture
def render(template: ChatTemplate) -> Callable[..., str]:
    return lambda messages=HELLO, **variables: template.render(messages, variables)


def test_the_prompt_ends_where_the_model_goes_on(render: Callable[..., str]) -> None:
    prompt = render()
    assert prompt.startswith(SAID)
    assert prompt.endswith(HEADER)
    assert "You said: Hello" in prompt


def test_variables_reach_the_template(render: Callable[..., str]) -> None:
    assert "I repeat what was said to me." in render(enable_thinking=True)
    assert "I repeat what was said to me." not in render(enable_thinking=False)
    assert render(add_generation_prompt=False) == SAID


def test_the_last_message_can_be_gone_on_with(render: Callable[..., str]) -> None:
    prompt = render([*HELLO, {"role": "assistant", "content": "You sa"}], continue_final_message=True)
    assert prompt == f"{SAID}{HEADER}You sa"


@pytest.mark.parametrize("name", ["chat_template", "tokenize"])
def test_a_request_cannot_bring_a_template_of_its_own(render: Callable[..., str], name: str) -> None:
    with pytest.raises(RequestError, match="cannot be set") as refused:
        render(**{name: "x"})
    assert refused.value.param == "chat_template_kwargs"


def test_what_the_template_refuses_is_a_wrong_request(render: Callable[..., str]) -> None:
    with pytest.raises(RequestError, match="Unknown role jester"):
        render([{"role": "jester", "content": "Hello"}])


def test_a_tokenizer_that_is_not_there_or_has_no_template_is_an_error_of_the_configuration(
    model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        ChatTemplate(str(tmp_path))
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="has no chat template"):
        ChatTemplate(str(tmp_path))


def test_the_default_model_is_known_by_its_name(
    template: ChatTemplate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ChatTemplate("local-vllm-default").render(HELLO, {}) == template.render(HELLO, {})


# ---- over HTTP


@asynccontextmanager
async def a_client(engine: StandInEngine, model: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    choice = {"index": 0, "text": "Hi", "finish_reason": "stop"}
    engine.body = json.dumps({"id": "c", "model": "base", "choices": [choice]}).encode()
    settings = VLLMModelSettings(
        base_url=engine.base_url,
        model="base",
        use_completions_api=True,
        render_chat_template=True,
        tokenizer=str(model),
    )
    async with serving(VLLMModel("policy_model", settings, Replica(SECRET))) as address:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0, timeout=20) as client:
            yield client


def asked(engine: StandInEngine) -> dict[str, Any]:
    return engine.asked[-1]["body"]


async def test_a_conversation_is_the_prompt_that_the_template_makes_of_it(
    one_engine: StandInEngine, model: Path, template: ChatTemplate
) -> None:
    turns = [*HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "THINK:so|yes"}]
    async with a_client(one_engine, model) as client:
        answer = await client.responses.create(model="m", input=turns)
        assert answer.output_text == "Hi"
        of_responses = asked(one_engine)
        await client.chat.completions.create(model="m", messages=turns)
    assert of_responses["prompt"] == asked(one_engine)["prompt"] == template.render(turns, {})
    assert of_responses["add_special_tokens"] is False
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(of_responses["prompt"], add_special_tokens=False)
    assert ids.tokens.count("<|im_start|>") == 4


async def test_earlier_calls_and_parts_stand_in_the_prompt(one_engine: StandInEngine, model: Path) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call_output", "call_id": "c", "output": "done"},
    ]
    async with a_client(one_engine, model) as client:
        await client.responses.create(model="m", input=items)
    prompt = asked(one_engine)["prompt"]
    assert "user\none\ntwo<|im_end|>" in prompt
    assert "<think>\nhm\n</think>" in prompt
    assert '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>' in prompt
    assert "The tool answered: done" in prompt


async def test_settings_of_the_template_come_from_the_request(one_engine: StandInEngine, model: Path) -> None:
    async with a_client(one_engine, model) as client:
        kwargs = {"chat_template_kwargs": {"enable_thinking": True}}
        await client.responses.create(model="m", input="Hello", extra_body=kwargs)
        assert "I repeat what was said to me." in asked(one_engine)["prompt"]
        with pytest.raises(openai.BadRequestError, match="empty") as refused:
            await client.chat.completions.create(model="m", messages=[])
        assert refused.value.type == "invalid_request_error"
