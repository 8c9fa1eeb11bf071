"""Counts what became of the requests of one server in this process, in a microsecond each."""

from __future__ import annotations

from bisect import bisect_left

# Upper bounds: from a refusal to a long generation.
BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
# The status of a request whose client went away before the end of the answer, as nginx has it.
CLIENT_GONE = 499


class Durations:
    """`counts` has how many answers fell between each of BUCKETS_S and the one before, and at its end how many took
    longer than all; `total_s` what they took together.
    """

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds


class Traffic:
    """`answers` has how many requests ended, by route and status; `durations` by route, of those that are no errors.

    Routes are those of an application, and not the paths that clients made up: so neither grows without end.
    """

    __slots__ = ("answers", "durations")

    def __init__(self) -> None:
        self.answers: dict[tuple[str, int], int] = {}
        self.durations: dict[str, Durations] = {}

    def ended(self, route: str, status: int, seconds: float) -> None:
        """Count a request whose answer has ended."""
        key = (route, status)
        self.answers[key] = self.answers.get(key, 0) + 1
        if status < 400:
            durations = self.durations.get(route)
            if durations is None:
                durations = self.durations[route] = Durations()
            durations.add(seconds)
