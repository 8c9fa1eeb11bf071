"""Whatever a client sends, it gets an answer in time: never a 5xx, and OpenAI's error object on every 4xx.

LOCAL_VLLM_FUZZ_S sets how long each test goes on; CI's share is short. `pytest -s` shows what was answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from servers_under_test import SECRET, model_server, over
from stand_in_engine import StandInEngine, serving

from local_vllm.config.schema import OpenAIModelSettings, VLLMModelSettings
from local_vllm.protocol.request import OpenAIFields
from local_vllm.protocol.settings import ConverterSettings
from local_vllm.protocol.vllm_fields import PASSED_THROUGH
from local_vllm.serving.gateway import Gateway
from local_vllm.serving.model_server import ModelServer
from local_vllm.serving.openai_model import OpenAIModel
from local_vllm.serving.replica import Replica
from local_vllm.serving.vllm_model import VLLMModel

BUDGET_S = float(os.environ.get("LOCAL_VLLM_FUZZ_S", "15"))
ANSWER_S = 5
CHUNK = {"model": "m", "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
STREAM = b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(CHUNK).encode()
KINDS = {"invalid_request_error", "server_error"}
STATUSES: Counter[int] = Counter()

pytestmark = pytest.mark.timeout(3 * BUDGET_S + 120)
fuzzed = settings(
    max_examples=100,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Agreeable(StandInEngine):
    """Answers whatever it is asked, as a stream if that is asked for."""

    async def _answer(self, path: str, send: Callable[..., Any]) -> None:
        asked = self.asked.pop()["body"] or {}
        if not asked.get("stream"):
            return await super()._answer(path, send)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": STREAM})


def servers(stand_in: StandInEngine) -> list[ModelServer]:
    """One of each way to ask an engine."""
    replica = Replica(SECRET)
    base = ConverterSettings(use_completions_api=True)
    settings = {"base_url": stand_in.base_url, "model": "m", "api_key": "k"}
    return [
        model_server(over(stand_in)),
        model_server(over(stand_in), name="base", settings=base),
        model_server(over(stand_in), name="rendered", settings=base, render=lambda said, variables: str(said)),
        VLLMModel("native", VLLMModelSettings(**settings, is_responses_native=True), replica),
        OpenAIModel("openai", OpenAIModelSettings(**settings, extra_body={"max_tokens": 5}), replica),
    ]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a gateway over a stand-in engine, in a thread of its own."""
    ready, leave = threading.Event(), threading.Event()
    found: list[int] = []

    async def serve() -> None:
        stand_in = Agreeable()
        async with serving(stand_in, lifespan="off") as engine_address:
            stand_in.base_url = f"{engine_address}/v1"
            async with serving(Gateway(servers(stand_in))) as address:
                found.append(int(address.rpartition(":")[2]))
                ready.set()
                await asyncio.to_thread(leave.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    yield found[0]
    leave.set()
    thread.join(30)


def send(port: int, method: str, path: str, body: bytes | None) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("content-type", "")


def check(status: int, body: bytes, kind: str) -> None:
    STATUSES[status] += 1
    assert status < 500, body
    if status >= 400:
        error = json.loads(body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and error["message"]
        assert error["type"] in KINDS
        assert error["param"] is None or isinstance(error["param"], str)
    elif kind.startswith("application/json"):
        json.loads(body)
    else:
        assert kind.startswith("text/event-stream")


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["", "auto", "message", "function", "user", "\x00", "é" * 70, "{}", "[]", "null"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
IDS = st.sampled_from(["c1", "c2", "", "msg_1", "resp_1", "msg_" + "0" * 33, "resp_x"])
TEXT = st.text(max_size=10)


def fields(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these fields, and now and then junk in one."""
    return st.fixed_dictionaries({}, optional={name: value | JUNK for name, value in known.items()})


PARTS = st.lists(
    fields(
        type=st.sampled_from(
            ["input_text", "output_text", "input_image", "input_audio", "input_file", "input_video", "refusal"]
        ),
        text=TEXT,
        refusal=TEXT,
        image_url=st.sampled_from(["data:,", "http://a/b", "x"]),
        video_url=st.just("data:,"),
        input_audio=st.just({"data": "", "format": "wav"}),
        detail=st.sampled_from(["low", "auto", "x"]),
        file_id=IDS,
    ),
    max_size=3,
)
ITEMS = st.lists(
    fields(
        type=st.sampled_from(
            "message reasoning function_call function_call_output custom_tool_call custom_tool_call_output "
            "item_reference web_search_call".split()
        ),
        role=st.sampled_from(["user", "assistant", "system", "developer", "tool"]),
        content=TEXT | PARTS,
        id=IDS,
        call_id=IDS,
        name=st.sampled_from(["f", "g"]),
        arguments=st.sampled_from(["{}", "", "{"]),
        input=TEXT,
        output=TEXT | PARTS,
        summary=PARTS,
        status=st.sampled_from(["completed", "incomplete"]),
    )
    | JUNK,
    max_size=5,
)
SCHEMAS = fields(
    type=st.sampled_from(["object", "string"]),
    properties=st.dictionaries(TEXT, fields(type=st.just("string")), max_size=2),
    required=st.lists(TEXT, max_size=2),
    items=fields(type=st.just("string")),
)
TOOL_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(["function", "custom", "web_search", "mcp", "namespace", "allowed_tools"]),
    "name": st.sampled_from(["f", "g", "a b"]),
    "parameters": SCHEMAS,
    "strict": st.booleans(),
    "description": TEXT,
    "format": fields(type=st.just("grammar"), syntax=st.just("lark"), definition=TEXT),
    "mode": st.sampled_from(["auto", "required"]),
}
TOOLS = st.lists(fields(**TOOL_FIELDS), max_size=3)
MESSAGES = st.lists(
    fields(
        role=st.sampled_from(["user", "assistant", "system", "tool"]),
        content=TEXT | st.lists(fields(type=st.sampled_from(["text", "image_url"]), text=TEXT), max_size=2),
        reasoning=TEXT,
        tool_calls=st.lists(fields(id=IDS, function=fields(name=TEXT, arguments=st.sampled_from(["{}", "{"])))),
    )
    | JUNK,
    max_size=3,
)
KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "messages": MESSAGES,
    "logprobs": st.booleans(),
    "chat_template_kwargs": st.dictionaries(TEXT, JUNK, max_size=2),
    "input": TEXT | ITEMS,
    "instructions": TEXT,
    "tools": TOOLS,
    "tool_choice": st.sampled_from(["auto", "none", "required"]) | fields(**TOOL_FIELDS, tools=TOOLS),
    "text": fields(
        format=fields(
            type=st.sampled_from(["text", "json_object", "json_schema"]), name=st.just("n"), schema=SCHEMAS
        ),
        verbosity=st.just("low"),
    ),
    "reasoning": fields(effort=st.sampled_from(["low", "none"]), summary=st.just("auto")),
    "metadata": st.dictionaries(
        TEXT | st.sampled_from(["extra_body", "chat_template_kwargs", "audio_path", "audio_paths", "audio_data"]),
        TEXT | st.sampled_from(["{}", '{"top_k": 1}', "[]", '["../x"]', "/etc/passwd", "data:audio/wav;base64,"]),
        max_size=3,
    ),
    "include": st.lists(st.sampled_from(["message.output_text.logprobs", "x"]), max_size=2),
    "previous_response_id": IDS,
    "stream": st.booleans(),
    "temperature": st.floats(-1, 3),
    "max_output_tokens": st.integers(-1, 2**65),
    "top_logprobs": st.integers(-1, 30),
}
OTHERS = sorted(({*OpenAIFields.__struct_fields__, *PASSED_THROUGH} - KNOWN.keys()) | {"temprature", "unheard_of"})
REQUESTS = st.builds(
    lambda known, others, asked: {"model": "my/model", **others, **known, **asked},
    st.fixed_dictionaries({}, optional={name: value | JUNK for name, value in KNOWN.items()}),
    st.dictionaries(st.sampled_from(OTHERS), JUNK, max_size=2),
    st.fixed_dictionaries({}, optional={"input": TEXT | ITEMS}),
)
BELOW = ["", "/policy_model", "/base", "/rendered", "/native", "/openai"]
PATHS = st.sampled_from([f"{server}/v1/{api}" for server in BELOW for api in ("responses", "chat/completions")])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A body in which bytes were changed, lost or added."""
    body = bytearray(json.dumps(draw(REQUESTS)).encode())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(body) - 1, 0)))
        body[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(body)


@fuzzed
@given(request=REQUESTS, path=PATHS)
def a_request(port: int, request: dict[str, Any], path: str) -> None:
    check(*send(port, "POST", path, json.dumps(request).encode()))


@fuzzed
@given(body=damaged() | st.binary(max_size=60), path=PATHS)
def a_damaged_body(port: int, body: bytes, path: str) -> None:
    check(*send(port, "POST", path, body))


@fuzzed
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
    parts=st.lists(st.sampled_from(["v1", "responses", "resp_1", "input_items", "cancel", "x", "", "%ff", "..", "native"])),
    query=st.sampled_from(["", "?limit=x", "?limit=%ff&after=", "?order=asc&order=up", "?stream=true", "?&&="]),
)
def a_path(port: int, method: str, parts: list[str], query: str) -> None:
    check(*send(port, method, f"/{'/'.join(parts)}{query}", None))


@pytest.mark.parametrize("examples", [a_request, a_damaged_body, a_path])
def test_every_request_is_answered_in_time_and_never_with_a_5xx(port: int, examples: Callable[[int], None]) -> None:
    STATUSES.clear()
    end = time.monotonic() + BUDGET_S
    while time.monotonic() < end:
        examples(port)
    print(f"{examples.__name__}: {STATUSES.total()} requests, by status {dict(sorted(STATUSES.items()))}")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"content":['])
@pytest.mark.parametrize("field", [b"input", b"tools", b"text", b"vllm_xargs", b"metadata", b"tool_choice"])
def test_json_that_is_too_deep_is_a_400(port: int, field: bytes, opening: bytes) -> None:
    body = b'{"model": "my/model", "input": "a", "%s": %s' % (field, opening * 50_000)
    status, answer, kind = send(port, "POST", "/v1/responses", body)
    check(status, answer, kind)
    assert status == 400
