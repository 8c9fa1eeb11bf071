"""What is counted and how often is tried again, without a collection around it."""

from __future__ import annotations

from itertools import combinations
from math import isclose
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_vllm.rollouts.failures import Failed, Failure, RetryBudget, failure_of, wait_before_next_s
from local_vllm.rollouts.identity import Identity, differences
from local_vllm.rollouts.progress import Sample, rates
from local_vllm.rollouts.rows import Input
from local_vllm.rollouts.tally import Done, pass_at_k


def share_of_choices_that_pass(rollouts: int, passed: int, k: int) -> float:
    """pass@k by its definition: among all choices of k rollouts, those with a passed one."""
    choices = list(combinations(range(rollouts), k))
    return sum(any(rollout < passed for rollout in choice) for choice in choices) / len(choices)


# A busy machine takes its time, now and then.
@settings(deadline=None)
@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_choices_of_k_rollouts_in_which_one_passes(case: tuple[int, int, int]) -> None:
    assert isclose(pass_at_k(*case), share_of_choices_that_pass(*case))


# task -> rewards, k -> pass@k with 5 repeats wanted.
TABLE = [
    ({0: [1.0] * 5}, {1: 1.0, 2: 1.0, 4: 1.0, 5: 1.0}),
    ({0: [0.0] * 5}, {1: 0.0, 2: 0.0, 4: 0.0, 5: 0.0}),
    ({0: [1, 0, 0, 0, 0]}, {1: 0.2, 2: 0.4, 4: 0.8, 5: 1.0}),
    ({0: [1, 0, 0, 0, 0], 1: [0, 0, 1, 1, 0]}, {1: 0.3, 2: 0.55, 4: 0.9, 5: 1.0}),
    ({0: [0.99, 0.5, -1, 1.5, 0]}, {1: 0.2, 2: 0.4, 4: 0.8, 5: 1.0}),
    # Of a task with failed rollouts only what is there counts, and not where k is more than that.
    ({0: [1, 0], 1: [0, 0, 0, 0, 0]}, {1: 0.25, 2: 0.5, 4: 0.0, 5: 0.0}),
    ({}, {}),
]


@pytest.mark.parametrize(("rewards", "expected"), TABLE)
def test_pass_at_k_of_a_collection_is_the_mean_over_its_tasks(
    rewards: dict[int, list[float]], expected: dict[int, float]
) -> None:
    done = Done(2, 5)
    for task, of_task in rewards.items():
        for rollout, reward in enumerate(of_task):
            done.add(task, rollout, reward)

    assert done.pass_at_k() == pytest.approx(expected)


def test_without_repeats_there_is_no_pass_at_k() -> None:
    done = Done(1, 1)
    done.add(0, 0, 1.0)
    assert done.pass_at_k() == {}


@settings(deadline=None)
@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 2))))
def test_what_is_missing_is_what_was_not_added(added: set[tuple[int, int]]) -> None:
    done = Done(7, 3)
    for task, rollout in added:
        done.add(task, rollout, 0.0)

    missing = {(task, rollout) for task in range(7) for rollout in done.missing(task)}
    assert missing == {(task, rollout) for task in range(7) for rollout in range(3)} - added
    assert done.count == len(added)


@pytest.mark.parametrize(
    ("status", "failure"),
    {
        400: Failure.REJECTED, 404: Failure.REJECTED, 408: Failure.UPSTREAM_ERROR, 422: Failure.REJECTED,
        429: Failure.OVERLOADED, 500: Failure.ENVIRONMENT_ERROR, 502: Failure.UPSTREAM_ERROR,
        503: Failure.UNAVAILABLE, 504: Failure.UPSTREAM_ERROR,
    }.items(),
)  # fmt: skip
def test_a_status_has_a_class(status: int, failure: Failure) -> None:
    assert failure_of(status) is failure


@pytest.mark.parametrize("failure", Failure)
def test_waits_grow_have_jitter_and_end(failure: Failure) -> None:
    attempt, longest = 1, 0.0
    while (wait := wait_before_next_s(Failed(failure, ""), attempt)) is not None:
        waits = {wait_before_next_s(Failed(failure, ""), attempt) for _ in range(50)}
        assert len(waits) == 50 and max(waits) <= 90
        assert max(waits) > longest or wait >= 30
        attempt, longest = attempt + 1, max(waits)
    assert attempt <= 10


@settings(deadline=None)
@given(st.floats(0, 1000), st.integers(1, 9))
def test_no_wait_is_shorter_than_what_the_server_asked_for(asked_s: float, attempt: int) -> None:
    wait = wait_before_next_s(Failed(Failure.OVERLOADED, "", 429, asked_s), attempt)
    assert wait is not None and wait >= asked_s


def test_a_budget_is_spent_by_retries_and_earned_by_rollouts() -> None:
    budget = RetryBudget(2)
    assert [budget.take(Failure.TIMEOUT) for _ in range(3)] == [True, True, False]
    assert budget.take(Failure.OVERLOADED)
    budget.earn()
    assert not budget.take(Failure.TIMEOUT)
    budget.earn()
    assert budget.take(Failure.TIMEOUT)


def test_rates_are_between_the_samples_and_failures_count_for_the_time_left() -> None:
    now = rates(Sample(0.0, 10, 10, 100), Sample(30.0, 25, 40, 400), total=100)
    assert (now.rollouts_per_min, now.output_tokens_per_s, now.left_s) == (30.0, 10.0, 60.0)
    assert rates(Sample(0.0, 0, 0, 0), Sample(1.0, 0, 0, 0), total=9).left_s is None


SAME: dict[str, Any] = {
    "input": "rows.jsonl", "rows": 10, "digest": "d", "num_repeats": 2, "agent_name": "a",
    "responses_create_params": {"temperature": 0.5}, "models": ("m",),
}  # fmt: skip
DIFFERENT = {
    "nothing": ({}, None),
    "the name of the input": ({"input": "moved.jsonl"}, None),
    "more rows": ({"rows": 11, "digest": "e"}, None),
    "more repeats": ({"num_repeats": 3}, None),
    "models that are not known": ({"models": ()}, None),
    "fewer rows": ({"rows": 9, "digest": "e"}, "the input: 10 rows of rows.jsonl then, 9 of rows.jsonl now"),
    "fewer repeats": ({"num_repeats": 1}, "num_repeats: 2 then, 1 now"),
    "another agent": ({"agent_name": "b"}, "agent_name: a then, b now"),
    "the agent of each row": ({"agent_name": None}, "agent_name: a then, that of each row now"),
    "another field": (
        {"responses_create_params": {"temperature": 1.0}}, "responses_create_params.temperature: 0.5 then, 1.0 now"
    ),
    "no field": ({"responses_create_params": {}}, "responses_create_params.temperature: 0.5 then, not set now"),
    "another model": ({"models": ("n",)}, "the models: m then, n now"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "difference"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_difference_is_told(change: dict[str, Any], difference: str | None) -> None:
    now = Identity(**SAME | change)
    rows = Input(path=None, rows=now.rows, digest=now.digest, agents=frozenset(), earlier_digest="d")
    assert list(differences(Identity(**SAME), now, rows)) == ([difference] if difference else [])
