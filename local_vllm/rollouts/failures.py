"""What can go wrong with a rollout, how often each is tried again, and how long is waited before. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum


class Failure(StrEnum):
    """The classes of failure, as they stand in the sidecar and the summary."""

    REJECTED = "rejected"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    UPSTREAM_ERROR = "upstream_error"
    ENVIRONMENT_ERROR = "environment_error"
    NO_CONNECTION = "no_connection"
    CONNECTION_LOST = "connection_lost"
    TIMEOUT = "timeout"
    INVALID_ANSWER = "invalid_answer"
    ENGINE_DOWN = "engine_down"


@dataclass(frozen=True, slots=True)
class Patience:
    """`attempts` in all, and the wait after the first; it doubles with each. `budgeted`: costs retry budget."""

    attempts: int
    wait_s: float = 1.0
    budgeted: bool = True


# 4xx and answers that never come are not worth the engine's time again; who says "later" is obeyed.
PATIENCE = {
    Failure.REJECTED: Patience(1),
    Failure.OVERLOADED: Patience(10, 2.0, budgeted=False),
    Failure.UNAVAILABLE: Patience(10, 2.0, budgeted=False),
    Failure.UPSTREAM_ERROR: Patience(4),
    Failure.ENVIRONMENT_ERROR: Patience(3),
    Failure.NO_CONNECTION: Patience(6, budgeted=False),
    Failure.CONNECTION_LOST: Patience(4),
    Failure.TIMEOUT: Patience(2),
    Failure.INVALID_ANSWER: Patience(3),
    Failure.ENGINE_DOWN: Patience(1),
}
LONGEST_WAIT_S = 60.0
# The engine had not begun, so an attempt that it was away for does not count.
NOT_BEGUN = frozenset({Failure.UNAVAILABLE, Failure.NO_CONNECTION})
# Signs that nobody is there any more: worth a look before anything else is sent.
SIGNS_OF_ABSENCE = NOT_BEGUN | {Failure.UPSTREAM_ERROR, Failure.CONNECTION_LOST, Failure.REJECTED}


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that came to nothing. `status` is that of HTTP, None without an answer."""

    failure: Failure
    message: str
    status: int | None = None
    retry_after_s: float = 0.0

    @property
    def may_be_absence(self) -> bool:
        """A 404 is a route that is gone; any other rejection came from somebody."""
        return self.failure in SIGNS_OF_ABSENCE and (self.failure is not Failure.REJECTED or self.status == 404)

    @property
    def had_not_begun(self) -> bool:
        """Nobody was there to begin the rollout."""
        return self.failure in NOT_BEGUN or self.status == 404


def failure_of(status: int) -> Failure:
    """The class of an HTTP status that is not 200."""
    if status == 429:
        return Failure.OVERLOADED
    if status == 503:
        return Failure.UNAVAILABLE
    if status in (408, 502, 504):
        return Failure.UPSTREAM_ERROR
    return Failure.ENVIRONMENT_ERROR if status >= 500 else Failure.REJECTED


def wait_before_next_s(failed: Failed, attempt: int) -> float | None:
    """How long to wait after this attempt, the first being 1; None when there is no next one."""
    patience = PATIENCE[failed.failure]
    if attempt >= patience.attempts:
        return None
    wait = min(LONGEST_WAIT_S, patience.wait_s * 2 ** (attempt - 1))
    # Jitter goes upward from what the server asked for, so that it is never asked too early.
    return max(failed.retry_after_s, wait * random.uniform(0.5, 1.0)) + random.uniform(0.0, 0.5) * wait


class RetryBudget:
    """How many retries a collection may still spend: a rollout that succeeds earns some back.

    Where nearly everything fails, trying each three times only makes it take three times as long.
    """

    EARNED = 0.5

    def __init__(self, size: float) -> None:
        self._size = size
        self._left = size

    def take(self, failure: Failure) -> bool:
        """Whether a retry after `failure` may be made; it is spent with that."""
        if not PATIENCE[failure].budgeted:
            return True
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def earn(self) -> None:
        self._left = min(self._size, self._left + self.EARNED)
