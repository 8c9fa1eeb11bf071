"""What makes two collections the same one, so that one can go on with the other's output. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from local_vllm.rollouts.rows import Input


@dataclass(frozen=True, slots=True)
class Identity:
    """What was collected from what.

    Attributes:
        input: the file's path, for people; its content counts.
        rows, digest: how many of its rows, and a digest of them.
        agent_name: None where each row names its own.
        models: what the run's model servers served; empty where that could not be known.
    """

    input: str
    rows: int
    digest: str
    num_repeats: int
    agent_name: str | None
    responses_create_params: dict[str, Any]
    models: tuple[str, ...] = ()


def differences(then: Identity, now: Identity, rows: Input) -> Iterator[str]:
    """Why `now` cannot go on with what `then` began, a sentence each. More rows or repeats are no difference."""
    if now.rows < then.rows:
        yield f"the input: {then.rows} rows of {then.input} then, {now.rows} of {now.input} now"
    elif rows.earlier_digest != then.digest:
        yield f"the input: the first {then.rows} rows of {now.input} are not those of {then.input} then"
    if now.num_repeats < then.num_repeats:
        yield f"num_repeats: {then.num_repeats} then, {now.num_repeats} now"
    if now.agent_name != then.agent_name:
        yield f"agent_name: {_agent(then)} then, {_agent(now)} now"
    yield from _params_differences(then.responses_create_params, now.responses_create_params)
    if then.models and now.models and then.models != now.models:
        yield f"the models: {', '.join(then.models)} then, {', '.join(now.models)} now"


def _agent(identity: Identity) -> str:
    return identity.agent_name or "that of each row"


def _params_differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            yield f"responses_create_params.{key}: {_value(then, key)} then, {_value(now, key)} now"


def _value(params: dict[str, Any], key: str) -> str:
    return repr(params[key]) if key in params else "not set"
