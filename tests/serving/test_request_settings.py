"""What a server's settings do to requests, over HTTP: audio files, native engines, base models, body sizes."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from servers_under_test import SECRET
from stand_in_engine import StandInEngine, chat_answer, serving

from local_vllm.config.schema import VLLMModelSettings
from local_vllm.serving.audio import AudioFolder
from local_vllm.serving.gateway import Gateway
from local_vllm.serving.replica import Replica
from local_vllm.serving.vllm_model import VLLMModel

pytestmark = pytest.mark.timeout(30)

WAV = b"RIFF....WAVE"
URL = f"data:audio/wav;base64,{base64.b64encode(WAV).decode()}"
AUDIO = {"type": "audio_url", "audio_url": {"url": URL}}


@asynccontextmanager
async def a_client(
    engine: StandInEngine, *, by_gateway: bool = False, **settings: Any
) -> AsyncIterator[openai.AsyncOpenAI]:
    given = VLLMModelSettings(base_url=engine.base_url, model="my/model", **settings)
    server = VLLMModel("policy_model", given, Replica(SECRET))
    async with serving(Gateway([server]) if by_gateway else server) as address:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0, timeout=10) as client:
            yield client


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder of audio, beside something secret."""
    root = tmp_path / "audio"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "secret.wav").write_bytes(b"secret")
    for place in (root / "a.wav", root / "deep" / "b.wav"):
        place.write_bytes(WAV)
    (root / "notes.txt").write_text("no audio")
    (root / "link.wav").symlink_to(tmp_path / "secret.wav")
    (root / "inner.wav").symlink_to(root / "a.wav")
    return root


async def said(engine: StandInEngine, client: openai.AsyncOpenAI, given: Any, **metadata: Any) -> list[dict]:
    await client.responses.create(model="my/model", input=given, metadata=metadata)
    return engine.asked[-1]["body"]["messages"]


async def test_audio_is_put_before_the_text_of_the_last_user_message(
    one_engine: StandInEngine, sounds: Path
) -> None:
    given = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    text = {"type": "text", "text": "three"}
    async with a_client(one_engine, audio_root=str(sounds)) as client:
        for metadata, count in (
            ({"audio_data": URL}, 1),
            ({"audio_path": "a.wav"}, 1),
            ({"audio_path": str(sounds / "deep" / "b.wav")}, 1),
            ({"audio_path": "inner.wav"}, 1),
            ({"audio_paths": ["a.wav", "deep/b.wav"]}, 2),
            ({"audio_paths": '["a.wav"]'}, 1),
        ):
            messages = await said(one_engine, client, [*given, {"role": "user", "content": "three"}], **metadata)
            assert messages == [*given, {"role": "user", "content": [*[AUDIO] * count, text]}]
        assert (await said(one_engine, client, given, audio_path="a.wav"))[0]["content"][0] == AUDIO


@pytest.mark.parametrize(
    "path", ["../secret.wav", "link.wav", "/etc/passwd", "deep/../../secret.wav", "none.wav", "notes.txt", "a\0.wav", "deep"]
)
async def test_no_other_file_is_read(one_engine: StandInEngine, sounds: Path, path: str) -> None:
    async with a_client(one_engine, audio_root=str(sounds)) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await said(one_engine, client, "hi", audio_path=path)
    assert refused.value.param == "metadata.audio_path"
    assert one_engine.asked == []


async def test_without_a_root_no_file_is_read_at_all(one_engine: StandInEngine, sounds: Path) -> None:
    async with a_client(one_engine) as client:
        with pytest.raises(openai.BadRequestError, match="audio_root"):
            await said(one_engine, client, "hi", audio_path=str(sounds / "a.wav"))


async def test_audio_files_together_are_no_larger_than_a_request_may_be(
    one_engine: StandInEngine, sounds: Path
) -> None:
    for name, kib in (("half", 400), ("large", 800)):
        (sounds / f"{name}.wav").write_bytes(bytes(kib << 10))
    async with a_client(one_engine, audio_root=str(sounds), max_request_mib=1) as client:
        await said(one_engine, client, "hi", audio_paths='["half.wav", "a.wav", "a.wav"]')
        for paths in (["large.wav"], ["half.wav"] * 2, ["half.wav", "deep/../half.wav"]):
            with pytest.raises(openai.APIStatusError) as refused:
                await said(one_engine, client, "hi", audio_paths=json.dumps(paths))
            assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")
    assert len(one_engine.asked) == 1


async def test_a_file_that_is_named_twice_is_read_once(sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *mode: opened.append(self.name) or real(self, *mode))
    assert await AudioFolder(str(sounds)).urls(("a.wav", "deep/b.wav", "a.wav")) == (URL, URL, URL)
    assert opened == ["a.wav", "b.wav"]


async def test_audio_that_was_sent_is_not_sent_back(one_engine: StandInEngine) -> None:
    async with a_client(one_engine) as client:
        answer = await client.responses.create(
            model="m", input="hi", metadata={"audio_data": URL, "a": "b"}
        )
    assert answer.metadata == {"a": "b"}


async def test_a_native_engine_is_asked_at_its_own_responses_api(one_engine: StandInEngine) -> None:
    one_engine.body = b'{"id": "resp_engine", "object":  "response"}'
    async with a_client(one_engine, is_responses_native=True, extra_body={"max_tokens": 5}) as client:
        raw = await client.responses.with_raw_response.create(model="m", input="hi", tools=[{"type": "web_search"}])
        assert raw.content == one_engine.body
    asked = one_engine.asked[0]
    assert asked["path"] == "/v1/responses"
    assert asked["body"] == {
        "model": "my/model",
        "input": "hi",
        "tools": [{"type": "web_search"}],
        "max_output_tokens": 5,
    }


async def test_a_native_engine_s_stream_passes_byte_for_byte(one_engine: StandInEngine) -> None:
    one_engine.chunks = [b"event: response.created\ndata: {}\n\n", b"event: x\ndata: {}\n\n"]
    async with a_client(one_engine, is_responses_native=True) as client:
        streaming = client.responses.with_streaming_response.create(model="m", input="hi", stream=True)
        async with streaming as answer:
            assert await answer.read() == b"".join(one_engine.chunks)


async def test_a_base_model_is_asked_for_completions(one_engine: StandInEngine) -> None:
    choice = {"index": 0, "text": " world", "finish_reason": "stop", "logprobs": None}
    one_engine.body = json.dumps({"id": "c", "model": "base", "choices": [choice]}).encode()
    async with a_client(one_engine, use_completions_api=True) as client:
        answer = await client.responses.create(model="m", input="Hello")
        chat = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}])
    assert answer.output_text == chat.choices[0].message.content == " world"
    assert [asked["path"] for asked in one_engine.asked] == ["/v1/completions"] * 2
    assert one_engine.asked[0]["body"]["prompt"] == "Hello"


@pytest.mark.parametrize("api", ["responses", "chat"])
async def test_a_base_model_is_streamed_word_by_word(one_engine: StandInEngine, api: str) -> None:
    ends = [None, None, "stop"]
    choices = [{"index": 0, "text": word, "finish_reason": end} for word, end in zip("abc", ends, strict=True)]
    chunks = [json.dumps({"id": "c", "model": "base", "choices": [choice]}).encode() for choice in choices]
    one_engine.chunks = [b"data: %b\n\n" % chunk for chunk in [*chunks, b"[DONE]"]]
    async with a_client(one_engine, use_completions_api=True) as client:
        if api == "chat":
            asked = [{"role": "user", "content": "Hello"}]
            stream = await client.chat.completions.create(model="m", messages=asked, stream=True)
            assert [chunk.choices[0].delta.content async for chunk in stream] == ["a", "b", "c"]
        else:
            stream = await client.responses.create(model="m", input="Hello", stream=True)
            events = [event async for event in stream]
            deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
            assert (deltas, events[-1].response.output_text) == (["a", "b", "c"], "abc")
    assert (one_engine.asked[0]["path"], one_engine.asked[0]["body"]["stream"]) == ("/v1/completions", True)


async def test_each_word_of_a_base_model_leaves_when_the_engine_has_said_it(one_engine: StandInEngine) -> None:
    choice = {"index": 0, "text": "word", "finish_reason": None}
    piece = b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()
    one_engine.chunks = [piece] * 3000
    async with a_client(one_engine, use_completions_api=True) as client:
        messages = [{"role": "user", "content": "Hello"}]
        async with asyncio.timeout(5):
            stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
            assert (await anext(aiter(stream))).choices[0].delta.content == "word"
            await stream.close()
            await one_engine.aborted.wait()


async def test_a_stream_of_a_base_model_that_breaks_off_says_so(one_engine: StandInEngine) -> None:
    one_engine.chunks, one_engine.break_off = [b'data: {"choices": [{"text": "a"}]}\n\n'], True
    async with a_client(one_engine, use_completions_api=True) as client:
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        with pytest.raises(openai.APIError, match="broke"):
            assert [chunk.choices[0].delta.content async for chunk in stream] == ["a"]


class Short(StandInEngine):
    """Takes no limit above its context, as vLLM 0.32."""

    async def _answer(self, path: str, send: Any) -> None:
        body = self.asked[-1]["body"]
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        if limit > 100:
            name = "max_tokens" if "completions" in path and "chat" not in path else "max_completion_tokens"
            message = f"{name}={limit} cannot be greater than max_model_len=100. Please request fewer output tokens."
            error = {"message": message, "type": "BadRequestError", "param": name, "code": 400}
            self.status, self.body = 400, json.dumps({"error": error}).encode()
        else:
            answer = chat_answer("Hello")
            answer["choices"][0]["text"] = "Hello"
            self.status, self.body = 200, json.dumps(answer).encode()
        await super()._answer(path, send)


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("chat", [False, True])
async def test_a_limit_above_the_context_is_cut_to_it(base: bool, chat: bool) -> None:
    short = Short()
    async with serving(short, lifespan="off") as address:
        short.base_url = f"{address}/v1"
        async with a_client(short, use_completions_api=base) as client:
            if chat:
                messages = [{"role": "user", "content": "Hello"}]
                done = await client.chat.completions.create(model="m", messages=messages, max_completion_tokens=5000)
                assert done.choices[0].message.content == "Hello"
            else:
                answer = await client.responses.create(model="m", input="Hello", max_output_tokens=5000)
                assert (answer.output_text, answer.max_output_tokens) == ("Hello", 5000)
    name = "max_tokens" if base else "max_completion_tokens"
    assert [asked["body"][name] for asked in short.asked] == [5000, 100]


async def test_who_refused_a_limit_is_asked_again_and_nobody_else() -> None:
    async with AsyncExitStack() as stack:
        engines = [Short(), Short()]
        for each in engines:
            each.base_url = f"{await stack.enter_async_context(serving(each, lifespan='off'))}/v1"
        settings = VLLMModelSettings(base_url=[each.base_url for each in engines], model="m")
        server = VLLMModel("policy_model", settings, Replica(SECRET))
        address = await stack.enter_async_context(serving(server))
        for _ in range(2):
            async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0) as client:
                await client.responses.create(model="m", input="Hello", max_output_tokens=5000)
    assert [[asked["body"]["max_completion_tokens"] for asked in each.asked] for each in engines] == [[5000, 100]] * 2


async def test_a_base_model_without_a_limit_may_go_on_to_the_end_of_its_context() -> None:
    short = Short()
    async with serving(short, lifespan="off") as address:
        short.base_url = f"{address}/v1"
        async with a_client(short, use_completions_api=True) as client:
            assert (await client.responses.create(model="m", input="Hello")).output_text == "Hello"
    assert short.asked[-1]["body"]["max_tokens"] == 100


async def test_a_turn_of_reasoning_alone_is_not_gone_on_from_when_so_set(one_engine: StandInEngine) -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    given = [{"role": "user", "content": "hi"}, thought]
    async with a_client(one_engine, sequential_reasoning_allowed=False) as client:
        answer = await client.responses.create(model="m", input=given)
        events = [event async for event in await client.responses.create(model="m", input=given, stream=True)]
        assert one_engine.asked == []
        await client.responses.create(model="m", input=[*given, {"role": "user", "content": "go on"}])
    assert (answer.status, answer.incomplete_details.reason, answer.output) == ("incomplete", "content_filter", [])
    assert events[-1].type == "response.incomplete"
    assert len(one_engine.asked) == 1


@pytest.mark.parametrize("by_gateway", [False, True])
async def test_a_body_larger_than_the_server_s_limit_is_a_413(one_engine: StandInEngine, by_gateway: bool) -> None:
    async with a_client(one_engine, by_gateway=by_gateway, max_request_mib=1) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.responses.create(model="my/model", input="x" * (1 << 20))
    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")
