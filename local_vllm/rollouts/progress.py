"""What a person sees while rollouts are collected: a live line on a terminal, plain lines anywhere else."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from local_vllm.rollouts.tally import Tally

LOOK_EACH_S = 0.5
# Rates are over this long, so that they follow what happens now.
RATE_WINDOW_S = 60.0
PLAIN_LINE_EACH_S = 30.0
PLAIN_LINE_FIRST_S = 5.0
BAR_COLUMNS = 30


class Sample(NamedTuple):
    """What there was at a time."""

    at: float
    done: int
    settled: int
    output_tokens: int


class Rates(NamedTuple):
    """`left_s` is None while nothing is known."""

    rollouts_per_min: float
    output_tokens_per_s: float
    left_s: float | None


def rates(first: Sample, last: Sample, total: int) -> Rates:
    """Between two samples. What failed is settled too, so it counts for the time left."""
    seconds = last.at - first.at
    if seconds <= 0:
        return Rates(0.0, 0.0, None)
    settled = last.settled - first.settled
    left_s = (total - last.settled) * seconds / settled if settled else None
    tokens = last.output_tokens - first.output_tokens
    return Rates(60 * (last.done - first.done) / seconds, tokens / seconds, left_s)


class Progress:
    """Watches a tally. `paused_for` says for which agent the collection is waiting, if it is."""

    def __init__(self, console: Console, tally: Tally, paused_for: Callable[[], str | None]) -> None:
        self._console = console
        self._tally = tally
        self._paused_for = paused_for
        self._samples: deque[Sample] = deque(maxlen=int(RATE_WINDOW_S / LOOK_EACH_S))

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Show it while the block runs, and where it stood at its end."""
        draws = self._console.is_terminal and not self._console.is_dumb_terminal
        show = self._show_live if draws else self._show_lines
        self._samples.append(self._sample())
        task = asyncio.create_task(show())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _show_live(self) -> None:
        with Live(get_renderable=self._drawn, console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                live.refresh()
                await self._next_sample()

    async def _show_lines(self) -> None:
        due = time.monotonic() + PLAIN_LINE_FIRST_S
        while True:
            await self._next_sample()
            if time.monotonic() >= due:
                due = time.monotonic() + PLAIN_LINE_EACH_S
                self._console.print(self._line(), soft_wrap=True)

    async def _next_sample(self) -> None:
        await asyncio.sleep(LOOK_EACH_S)
        self._samples.append(self._sample())

    def _sample(self) -> Sample:
        tally = self._tally
        done = tally.done.count
        return Sample(time.monotonic(), done, done + tally.failed, tally.output_tokens)

    def _drawn(self) -> Table:
        settled = self._tally.done.count + self._tally.failed
        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(total=max(1, self._tally.total), completed=settled, width=BAR_COLUMNS), self._line())
        return grid

    def _line(self) -> str:
        """`120/1,000 done, 2 failed, 50 in flight, 240 rollouts/min, ...`."""
        tally = self._tally
        now = rates(self._samples[0], self._samples[-1], tally.total)
        mean = tally.rewards.value
        words = [
            f"{tally.done.count:,}/{tally.total:,} done",
            f"{tally.failed:,} failed",
            f"{tally.in_flight:,} in flight",
            f"{now.rollouts_per_min:,.0f} rollouts/min",
            f"{now.output_tokens_per_s:,.0f} tokens/s",
            "no reward yet" if mean is None else f"mean reward {mean:.3f}",
        ]
        if agent := self._paused_for():
            words.append(f"paused: {agent} is down")
        elif now.left_s is not None:
            words.append(f"{in_words(now.left_s)} left")
        return ", ".join(words)


def in_words(seconds: float) -> str:
    """A time in its largest unit or two."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
