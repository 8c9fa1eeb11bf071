"""Whether an answer is the one that was asked for: a fast wrong one is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.scenarios import TOKEN_FIELDS, Api, Scenario

RESPONSE_EVENTS = ("response.created", "response.output_item.added", "response.output_item.done", "response.completed")
TEXT_DELTA = "response.output_text.delta"


def problem(scenario: Scenario, api: Api, answer: bytes) -> str | None:
    """What is wrong with the body of an answer; None if nothing is."""
    try:
        return next(iter(_problems(scenario, api, answer)), None)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return f"it cannot be read: {error!r}"


def _problems(scenario: Scenario, api: Api, answer: bytes) -> list[str]:
    if scenario.deltas:
        return (_of_events if api == "responses" else _of_chunks)(scenario, answer)
    return (_of_response if api == "responses" else _of_completion)(scenario, json.loads(answer))


def _of_response(scenario: Scenario, answer: Mapping[str, Any]) -> list[str]:
    items = [item["type"] for item in answer["output"]]
    found = _differs("items", items, list(scenario.items)) + _differs("status", answer["status"], "completed")
    if scenario.training:
        last = answer["output"][-1]
        found += _tokens(scenario, *(last.get(name) for name in TOKEN_FIELDS))
    return found


def _of_completion(scenario: Scenario, answer: Mapping[str, Any]) -> list[str]:
    (choice,) = answer["choices"]
    if not scenario.training:
        return []
    return _tokens(scenario, answer["prompt_token_ids"], choice["token_ids"], choice["logprobs"]["content"])


def _of_events(scenario: Scenario, answer: bytes) -> list[str]:
    kinds = [json.loads(data)["type"] for data in _data(answer)]
    missing = [kind for kind in RESPONSE_EVENTS if kind not in kinds]
    return [f"no {kind}" for kind in missing] + _differs("deltas", kinds.count(TEXT_DELTA), scenario.deltas)


def _of_chunks(scenario: Scenario, answer: bytes) -> list[str]:
    chunks = [json.loads(data) for data in _data(answer) if data != b"[DONE]"]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return _differs("deltas", sum(bool(delta.get("content")) for delta in deltas), scenario.deltas)


def _data(answer: bytes) -> list[bytes]:
    return [line[6:] for line in answer.splitlines() if line.startswith(b"data: ")]


def _tokens(
    scenario: Scenario, prompt: Sequence[int] | None, generated: Sequence[int] | None, logprobs: Sequence[object] | None
) -> list[str]:
    """As many as the scenario says; where it does not say, some, and a log probability for each that was generated."""
    counts = [len(each or ()) for each in (prompt, generated, logprobs)]
    wanted = [scenario.prompt_tokens or counts[0] or "some", scenario.tokens or counts[1] or "some"]
    return _differs("token ids of the prompt, of the answer, log probabilities", counts, [*wanted, wanted[1]])


def _differs(what: str, found: object, wanted: object) -> list[str]:
    return [] if found == wanted else [f"{what}: {found} instead of {wanted}"]
