"""The gateway over real HTTP: who gets a request, and what happens to one that nobody gets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import openai
import pytest
from servers_under_test import model_server, over
from stand_in_engine import StandInEngine, engine, serving

from local_vllm.serving.endpoints import NotReady, Ready
from local_vllm.serving.gateway import Gateway

pytestmark = pytest.mark.timeout(30)


class Starting:
    """A source whose engine is not there until the test says so."""

    state: Ready | NotReady = NotReady("starting", "The engine is compiling.", 3)

    def current(self) -> Ready | NotReady:
        return self.state

    async def start(self) -> None: ...

    async def close(self) -> None: ...


@dataclass
class Run:
    """Three servers: two with one model name, the third still starting."""

    address: str
    policy: StandInEngine
    judge: StandInEngine
    late: Starting


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    async with AsyncExitStack() as stack:
        policy = await stack.enter_async_context(engine("from policy"))
        judge = await stack.enter_async_context(engine("from judge"))
        late = Starting()
        servers = [
            model_server(over(policy), name="policy_model", model="org/Model"),
            model_server(over(judge), name="judge_model", model="org/Model"),
            model_server(late, name="late_model", model="org/Late"),
        ]
        address = await stack.enter_async_context(serving(Gateway(servers)))
        yield Run(address, policy, judge, late)


async def ask(method: str, url: str, **options: object) -> tuple[int, dict[str, str], dict]:
    async with aiohttp.ClientSession() as session, session.request(method, url, **options) as answer:
        return answer.status, dict(answer.headers), await answer.json()


def client(run: Run) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{run.address}/v1", api_key="EMPTY", max_retries=0, timeout=10)


@pytest.mark.parametrize(
    ("model", "text"),
    [("policy_model", "from policy"), ("judge_model", "from judge"), ("org/Model", "from policy")],
)
async def test_the_body_names_the_server_or_its_model(run: Run, model: str, text: str) -> None:
    async with client(run) as openai_:
        response = await openai_.responses.create(model=model, input="Hi")
        completion = await openai_.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Hi"}]
        )
    assert response.output_text == text
    assert completion.choices[0].message.content == text


async def test_an_unknown_model_is_404_and_the_known_ones_are_listed(run: Run) -> None:
    for path in ("/v1/responses", "/v1/chat/completions"):
        status, _, body = await ask("POST", run.address + path, json={"model": "gpt-9", "input": "Hi"})
        assert (status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")
        for known in ("policy_model", "judge_model", "org/Model", "org/Late"):
            assert known in body["error"]["message"]


async def test_a_body_without_a_model_is_400(run: Run) -> None:
    status, _, body = await ask("POST", f"{run.address}/v1/responses", json={"input": "Hi"})
    assert (status, body["error"]["param"]) == (400, "model")


async def test_a_body_that_is_no_json_is_400(run: Run) -> None:
    headers = {"content-type": "application/json"}
    status, _, body = await ask("POST", f"{run.address}/v1/responses", data=b"{", headers=headers)
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")


async def test_models_lists_each_server_once_it_is_ready(run: Run) -> None:
    _, _, before = await ask("GET", f"{run.address}/v1/models")
    assert [(model["id"], model["server"]) for model in before["data"]] == [
        ("org/Model", "policy_model"), ("org/Model", "judge_model"),
    ]  # fmt: skip
    run.late.state = over(run.policy).current()
    _, _, after = await ask("GET", f"{run.address}/v1/models")
    assert [model["id"] for model in after["data"]] == ["org/Model", "org/Model", "org/Late"]


async def test_a_server_that_is_not_ready_answers_503_by_name(run: Run) -> None:
    status, headers, body = await ask(
        "POST", f"{run.address}/v1/responses", json={"model": "org/Late", "input": "Hi"}
    )
    assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "engine_starting", "3")
    assert "late_model" in body["error"]["message"]


async def test_health_says_how_each_server_is(run: Run) -> None:
    status, _, body = await ask("GET", f"{run.address}/health")
    assert (status, body["status"]) == (503, "starting")
    assert body["servers"]["policy_model"] == {"status": "ready"}
    assert body["servers"]["late_model"]["message"] == "The engine is compiling."
    run.late.state = over(run.policy).current()
    assert (await ask("GET", f"{run.address}/health"))[0] == 200


@pytest.mark.parametrize("path", ["/", "/v2/responses", "/v1/embeddings", "/no_server/v1/responses", "//"])
async def test_everything_unknown_is_a_404_error_object(run: Run, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        status, _, body = await ask(method, run.address + path)
        assert (status, body["error"]["code"]) == (404, "not_found")


async def test_below_a_servers_name_is_that_server(run: Run) -> None:
    status, _, body = await ask(
        "POST", f"{run.address}/judge_model/v1/responses", json={"model": "gpt-9", "input": "Hi"}
    )
    assert status == 200
    assert body["output"][-1]["content"][0]["text"] == "from judge"
    status, _, body = await ask("GET", f"{run.address}/judge_model/get_inner_vllm_config")
    assert body["base_url"] == [run.judge.base_url]
    status, _, body = await ask("GET", f"{run.address}/judge_model/v1/nowhere")
    assert (status, body["error"]["code"]) == (404, "not_found")
