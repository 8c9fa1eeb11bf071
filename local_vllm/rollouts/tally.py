"""What is counted of a collection while it goes: rollouts, rewards, tokens; and pass@k. Pure."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping

from local_vllm.rollouts.failures import Failure
from local_vllm.rollouts.results import Tokens

# A rollout counts as passed from this reward on.
PASSED = 1.0


class Mean:
    """A mean in the making."""

    __slots__ = ("count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


class Done:
    """Which rollouts are done: one bit for each, and each task's finished and passed ones where it has several."""

    def __init__(self, tasks: int, repeats: int) -> None:
        self.tasks, self.repeats = tasks, repeats
        self.count = 0
        self._bits = bytearray((tasks * repeats + 7) // 8)
        sizes = tasks if repeats > 1 else 0
        self._finished, self._passed = array("I", bytes(4 * sizes)), array("I", bytes(4 * sizes))

    def has(self, task: int, rollout: int) -> bool:
        place = task * self.repeats + rollout
        return bool(self._bits[place >> 3] >> (place & 7) & 1)

    def add(self, task: int, rollout: int, reward: float) -> None:
        place = task * self.repeats + rollout
        self._bits[place >> 3] |= 1 << (place & 7)
        self.count += 1
        if self._finished:
            self._finished[task] += 1
            self._passed[task] += reward >= PASSED

    def missing(self, task: int) -> list[int]:
        """The rollouts of a task that are not done."""
        return [rollout for rollout in range(self.repeats) if not self.has(task, rollout)]

    def pass_at_k(self) -> dict[int, float]:
        """pass@k for k = 1, 2, 4, ... and the number of repeats; empty without repeats.

        The mean over the tasks that have k rollouts at least.
        """
        seen = Counter(zip(self._finished, self._passed, strict=True))
        return {k: value for k in _ks(self.repeats) if (value := mean_pass_at_k(seen, k)) is not None}


def _ks(repeats: int) -> list[int]:
    powers = [2**n for n in range(repeats.bit_length()) if 2**n <= repeats]
    return sorted({*powers, repeats}) if repeats > 1 else []


def mean_pass_at_k(seen: Mapping[tuple[int, int], int], k: int) -> float | None:
    """`seen`: (rollouts, passed ones) of a task -> tasks like that. None when no task has k rollouts."""
    counted = {pair: tasks for pair, tasks in seen.items() if pair[0] >= k}
    total = sum(counted.values())
    return sum(pass_at_k(*pair, k) * tasks for pair, tasks in counted.items()) / total if total else None


def pass_at_k(rollouts: int, passed: int, k: int) -> float:
    """The unbiased estimate that one of k rollouts passes: 1 - C(n - c, k) / C(n, k) (Chen et al., 2021)."""
    if rollouts - passed < k:
        return 1.0
    none_passes = 1.0
    for i in range(k):
        none_passes *= (rollouts - passed - i) / (rollouts - i)
    return 1.0 - none_passes


class Tally:
    """Everything counted. `total` rollouts are wanted; some of `done` may be from earlier sessions."""

    def __init__(self, done: Done) -> None:
        self.done = done
        self.rewards = Mean()
        self.by_agent: dict[str, Mean] = {}
        self.input_tokens = self.output_tokens = 0
        self.failures: Counter[Failure] = Counter()
        self.retries: Counter[Failure] = Counter()
        self.in_flight = 0

    @property
    def total(self) -> int:
        return self.done.tasks * self.done.repeats

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def not_begun(self) -> int:
        """Neither done nor failed."""
        return self.total - self.done.count - self.failed

    def finished(self, task: int, rollout: int, agent: str, reward: float, tokens: Tokens | None) -> None:
        """Count a rollout that stands in the output."""
        self.done.add(task, rollout, reward)
        self.rewards.add(reward)
        self.by_agent.setdefault(agent, Mean()).add(reward)
        if tokens is not None:
            self.input_tokens += tokens.input
            self.output_tokens += tokens.output
