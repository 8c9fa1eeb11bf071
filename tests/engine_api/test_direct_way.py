"""A real vLLM asked for responses in its own API server: what comes is what the server gives, without its hop."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import httpx
import pytest
from engine_answers import WEATHER, engine_url
from event_grammar import check, parse
from ng_run_process import KEY, NgRun, until
from openai import OpenAI

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

MODEL = "local-vllm-default"
CALLS = [{"name": "get_weather", "arguments": {"city": city}} for city in ("Paris", "Oslo")]
ASKED = {
    "text": {"input": "ECHO:Grüße from the engine"},
    "reasoning": {"input": "THINK:two and two|four"},
    "calls": {"input": f"CALL:{json.dumps(CALLS)}", "tools": [WEATHER]},
    "cut off": {"input": "REPEAT:40", "max_output_tokens": 7},
}
# What differs from one answer to the next, and where no responses are stored.
OWN = ("id", "created_at", "completed_at", "store", "usage")
OWN_OF_ITEMS = ("id", "call_id", "generation_log_probs")
# Words that take the engine long; nobody waits for the last of them.
MANY = 3500
RUNNING, GENERATED = "vllm:num_requests_running{", "vllm:generation_tokens_total{"


def comparable(response: dict[str, Any]) -> dict[str, Any]:
    output = [{name: value for name, value in item.items() if name not in OWN_OF_ITEMS} for item in response["output"]]
    return {name: value for name, value in response.items() if name not in OWN} | {"output": output}


def directly(run: NgRun, body: dict[str, Any], **headers: str) -> httpx.Response:
    given = {"Authorization": f"Bearer {KEY}"} | headers
    return httpx.post(f"{engine_url(run, 'policy_model')}/responses", json=body, headers=given, timeout=120)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_an_answer_is_the_servers_with_its_token_ids(run: NgRun, asked: dict[str, Any], stream: bool) -> None:
    body = {"model": MODEL, "temperature": 0} | asked
    expected = httpx.post(f"{run.url}/policy_model/v1/responses", json=body, timeout=120).json()
    answer = directly(run, body | {"stream": stream})
    assert answer.status_code == 200, answer.text
    found = check(parse(answer.content)) if stream else answer.json()
    assert comparable(found) == comparable(expected)
    assert found["usage"]["total_tokens"] == expected["usage"]["total_tokens"]
    last, of_server = found["output"][-1], expected["output"][-1]
    assert last["prompt_token_ids"] and last["generation_token_ids"]
    assert last["generation_log_probs"] == pytest.approx(of_server["generation_log_probs"], abs=1e-4)


def test_the_openai_package_asks_the_address_that_the_server_tells(run: NgRun) -> None:
    config = httpx.get(f"{run.url}/policy_model/get_inner_vllm_config", timeout=60).json()
    assert config["direct_responses"] is True
    with OpenAI(base_url=config["base_url"][0], api_key=KEY, max_retries=0, timeout=120) as client:
        assert client.responses.create(model=config["model"], input="ECHO:one two").output_text == "one two"


def test_a_server_without_it_says_so(run: NgRun) -> None:
    config = httpx.get(f"{run.url}/judge_model/get_inner_vllm_config", timeout=60).json()
    assert config["direct_responses"] is False


@pytest.mark.parametrize("body", [{"input": "ECHO:x"}, {"input": 5}], ids=["a request", "a wrong one"])
@pytest.mark.parametrize("key", [{"Authorization": ""}, {"Authorization": "Bearer another"}], ids=["none", "another"])
def test_the_engine_asks_for_its_key_first(run: NgRun, key: dict[str, str], body: dict[str, Any]) -> None:
    assert directly(run, body, **key).status_code == 401


def test_a_wrong_request_and_one_that_is_too_long_are_openais_errors(run: NgRun) -> None:
    wrong = directly(run, {"input": "ECHO:x", "temperature": "hot"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")
    long = directly(run, {"input": "ECHO:" + "word " * 20_000})
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    unknown = directly(run, {"model": "nobody's", "input": "ECHO:x"})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "invalid_request_error")


def test_everything_else_is_vllms_own(run: NgRun) -> None:
    url, key = engine_url(run, "policy_model"), {"Authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{url}/models", headers=key, timeout=60).json()["data"][0]["owned_by"] == "vllm"
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "ECHO:chat"}]}
    answer = httpx.post(f"{url}/chat/completions", json=chat, headers=key, timeout=120).json()
    assert answer["choices"][0]["message"]["content"] == "chat"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_goes_away_ends_generation(run: NgRun, stream: bool) -> None:
    before = metric(run, GENERATED)
    url, body = f"{engine_url(run, 'policy_model')}/responses", {"input": f"REPEAT:{MANY}", "stream": stream}
    # Nothing of a whole answer comes within this time, and of a stream all that is read.
    limits = httpx.Timeout(60, read=60 if stream else 1)
    with httpx.Client(timeout=limits, headers={"Authorization": f"Bearer {KEY}"}) as client:
        if stream:
            with client.stream("POST", url, json=body) as answer:
                lines = answer.iter_lines()  # a name of its own: it closes the connection when it is collected
                assert any('"delta":' in line for line in lines)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(url, json=body)
    assert until(lambda: metric(run, RUNNING) == 0, 60)
    assert metric(run, GENERATED) - before < MANY, "it was ended, and did not just end"


def metric(run: NgRun, name: str) -> float:
    """What vLLM itself counts."""
    url = engine_url(run, "policy_model").removesuffix("/v1") + "/metrics"
    lines = urllib.request.urlopen(url, timeout=60).read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))
