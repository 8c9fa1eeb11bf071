"""Streamed responses from a real vLLM behind the whole path: HAProxy, Serve, gateway or server, engine."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from engine_answers import WEATHER, engine_url
from event_grammar import check, parse
from ng_run_process import NgRun, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

MODEL = "local-vllm-default"
RUNNING = "vllm:num_requests_running{"
GENERATED = "vllm:generation_tokens_total{"
# Words that take the engine long; nobody waits for the last of them.
MANY = 3500
TWO_CALLS = [{"name": "get_weather", "arguments": {"city": city}} for city in ("Paris", "Oslo")]


def streamed(
    run: NgRun, input: str, *, server: str = "", **fields: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of an answer, and the response at their end; all of it checked against OpenAI's grammar."""
    body = {"model": MODEL, "input": input, "stream": True} | fields
    answer = httpx.post(f"{run.url}{server}/v1/responses", json=body, timeout=120)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = parse(answer.content)
    return events, check(events)


def deltas(events: list[dict[str, Any]], kind: str) -> list[str]:
    return [event["delta"] for event in events if event["type"] == f"response.{kind}.delta"]


@pytest.mark.parametrize("server", ["", "/policy_model"], ids=["gateway", "server"])
def test_a_text_is_streamed(run: NgRun, server: str) -> None:
    events, response = streamed(run, "ECHO:Grüße from the engine", server=server)
    assert "".join(deltas(events, "output_text")) == "Grüße from the engine"
    assert response["status"] == "completed"
    assert response["usage"]["output_tokens"] == len(response["output"][-1]["generation_token_ids"])


def test_the_openai_package_streams(run: NgRun) -> None:
    with run.client().responses.stream(model=MODEL, input="ECHO:one two three") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text == "one two three"


def test_reasoning_is_streamed_before_the_text(run: NgRun) -> None:
    events, response = streamed(run, "THINK:two and two|four")
    assert "".join(deltas(events, "reasoning_text")).strip() == "two and two"
    assert "".join(deltas(events, "output_text")).strip() == "four"
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]


@pytest.mark.parametrize("calls", [TWO_CALLS[:1], TWO_CALLS], ids=["one", "two"])
def test_tool_calls_are_streamed(run: NgRun, calls: list[dict[str, Any]]) -> None:
    events, response = streamed(run, f"CALL:{json.dumps(calls)}", tools=[WEATHER])
    made = [item for item in response["output"] if item["type"] == "function_call"]
    assert [(call["name"], json.loads(call["arguments"])) for call in made] == [
        (call["name"], call["arguments"]) for call in calls
    ]
    assert len({call["call_id"] for call in made}) == len(calls)
    assert "".join(deltas(events, "function_call_arguments")) == "".join(call["arguments"] for call in made)


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "ECHO:exact ids"},
        {"input": "THINK:two and two|four"},
        {"input": f"CALL:{json.dumps(TWO_CALLS)}", "tools": [WEATHER]},
        {"input": "REPEAT:40", "max_output_tokens": 7},
    ],
    ids=["text", "reasoning", "calls", "cut off"],
)
def test_a_streamed_response_is_the_whole_one_with_its_token_ids(run: NgRun, fields: dict[str, Any]) -> None:
    _, response = streamed(run, **fields)
    whole = httpx.post(f"{run.url}/v1/responses", json={"model": MODEL} | fields, timeout=120).json()
    assert response["status"] == whole["status"]
    assert [comparable(item) for item in response["output"]] == [comparable(item) for item in whole["output"]]
    last, expected = response["output"][-1], whole["output"][-1]
    assert last["prompt_token_ids"] == expected["prompt_token_ids"]
    assert last["generation_token_ids"] == expected["generation_token_ids"]
    assert last["generation_log_probs"] == pytest.approx(expected["generation_log_probs"], abs=1e-4)
    assert len(last["generation_log_probs"]) == len(last["generation_token_ids"]) > 0


def comparable(item: dict[str, Any]) -> dict[str, Any]:
    chance = ("id", "call_id", "prompt_token_ids", "generation_token_ids", "generation_log_probs")
    return {name: value for name, value in item.items() if name not in chance}


def test_a_limit_ends_in_incomplete(run: NgRun) -> None:
    _, response = streamed(run, f"REPEAT:{MANY}", max_output_tokens=5)
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"]["output_tokens"] == 5


def test_a_prompt_that_is_too_long_is_a_json_error(run: NgRun) -> None:
    body = {"model": MODEL, "input": "ECHO:" + "word " * 20_000, "stream": True}
    answer = httpx.post(f"{run.url}/v1/responses", json=body, timeout=120)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_the_engine_tells_the_prompt_that_says_whether_reasoning_is_open(run: NgRun) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "ECHO:x"}], "stream": True}
    body |= {"return_prompt_text": True}
    answer = httpx.post(f"{run.url}/v1/chat/completions", json=body, timeout=120)
    first = json.loads(answer.text.partition("\n")[0].removeprefix("data: "))
    assert first["prompt_text"].rstrip().endswith("assistant")


def test_the_first_delta_is_there_while_the_engine_goes_on(run: NgRun) -> None:
    before = metric(run, GENERATED)
    with leaving(run, "/v1/responses"):
        assert until(lambda: metric(run, RUNNING) == 1, 60)
        assert metric(run, GENERATED) - before < MANY


@pytest.mark.parametrize("path", ["/v1/responses", "/policy_model/v1/responses", "/v1/chat/completions"])
def test_a_client_that_goes_away_ends_generation_within_a_second(run: NgRun, path: str) -> None:
    """Once in five times: on a machine that is busy with other things vLLM itself may not be heard for seconds."""
    times = []
    while not times or (min(times) >= 1 and len(times) < 5):
        times.append(seconds_until_idle(run, path))
    assert min(times) < 1, times


def seconds_until_idle(run: NgRun, path: str) -> float:
    before = metric(run, GENERATED)
    with leaving(run, path):
        left = time.monotonic()
    assert until(lambda: metric(run, RUNNING) == 0, 60)
    took = time.monotonic() - left
    assert metric(run, GENERATED) - before < MANY, "it was ended, and did not just end"
    return took


@contextmanager
def leaving(run: NgRun, path: str) -> Iterator[None]:
    """A long answer whose first delta has come; the client leaves at the end of the block."""
    text = f"REPEAT:{MANY}"
    asked = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"input": text}
    body = {"model": MODEL, "stream": True} | asked
    with httpx.stream("POST", run.url + path, json=body, timeout=120) as answer:
        lines = answer.iter_lines()  # a name of its own: it closes the connection when it is collected
        assert any('"delta":' in line and '"role"' not in line for line in lines)
        yield


def metric(run: NgRun, name: str) -> float:
    """What vLLM itself counts."""
    url = engine_url(run, "policy_model").removesuffix("/v1") + "/metrics"
    lines = urllib.request.urlopen(url, timeout=60).read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))
