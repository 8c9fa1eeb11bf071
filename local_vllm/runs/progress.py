"""What a person sees while a run starts: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from local_vllm.engine.spec import Download, EngineState, EngineStatus

REFRESH_PER_S = 4
BAR_COLUMNS = 24
# A download gets a plain line when it has come so much further, or when none was said for so long.
LINE_EACH_SHARE = 0.1
LINE_EACH_S = 60.0
# But not more often than this.
LINE_AFTER_S = 10.0


@dataclass(frozen=True, slots=True)
class _Step:
    doing: str
    begun: float
    ended: float | None
    download: Download | None


class Progress:
    """Steps of the start-up, one for each name, each with what it is doing and for how long."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._begun = time.monotonic()
        self._steps: dict[str, _Step] = {}
        self._said: dict[str, tuple[float, float]] = {}
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the steps while the block runs."""
        if not self.console.is_terminal:
            yield
            return
        self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=REFRESH_PER_S)
        with self._live:
            yield

    def step(self, name: str, doing: str, *, done: bool = False, download: Download | None = None) -> None:
        """`name` is now `doing` that; `done` ends it."""
        now = time.monotonic()
        previous = self._steps.get(name)
        begun = previous.begun if previous else now
        self._steps[name] = _Step(doing, begun, now if done else None, download)
        is_news = previous is None or previous.doing != doing
        if not self.console.is_terminal and (is_news or self._is_due(name, now, download)):
            self._said[name] = (now, share_done(download) if download is not None else 0.0)
            more = f": {described(download)}" if download is not None else ""
            line = f"[{now - self._begun:6.1f} s] {name}: {doing}{more}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def engine(self, status: EngineStatus) -> None:
        """A step for an engine, from its status."""
        detail = status.reason
        doing = detail if status.state is EngineState.STARTING else status.state_in_words
        tells_why = (EngineState.FAILED, EngineState.LOST, EngineState.STALLED, EngineState.RESTARTING)
        if detail and status.state in tells_why:
            doing = f"{doing}: {detail}"
        done = not status.state.is_coming_up
        self.step(status.server, doing, done=done, download=status.download)

    def _is_due(self, name: str, now: float, download: Download | None) -> bool:
        if download is None:
            return False
        said_at, said_share = self._said[name]
        further = share_done(download) - said_share
        return now - said_at >= LINE_EACH_S or (now - said_at >= LINE_AFTER_S and further >= LINE_EACH_SHARE)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, step in self._steps.items():
            mark = Spinner("dots") if step.ended is None else Text("✓", style="green")
            elapsed = (step.ended or time.monotonic()) - step.begun
            table.add_row(mark, name, _drawn(step), f"{elapsed:5.1f} s")
        return table


def _drawn(step: _Step) -> RenderableType:
    if step.download is None:
        return step.doing
    bar = Table.grid(padding=(0, 1))
    share = ProgressBar(total=1.0, completed=share_done(step.download), width=BAR_COLUMNS)
    bar.add_row(share, Text(described(step.download)))
    return Group(step.doing, bar)


def share_done(download: Download) -> float:
    """How much of all bytes is there, from 0 to 1."""
    return download.bytes_done / download.bytes_total if download.bytes_total else 1.0


def described(download: Download) -> str:
    """A download in a line: `3 of 12 files, 1.2 of 60.5 GB (2%), 512 MB/s, 2 min left`."""
    done, total = in_units(download.bytes_done), in_units(download.bytes_total)
    if done.split()[1] == total.split()[1]:
        done = done.split()[0]
    words = [
        f"{download.files_done} of {download.files_total} files",
        f"{done} of {total} ({int(100 * share_done(download))}%)",
    ]
    if download.bytes_done < download.bytes_total:
        words.append(f"{in_units(download.bytes_per_s)}/s")
        if download.left_s is not None:
            words.append(f"{in_words(download.left_s)} left")
    return ", ".join(words)


def in_units(size: float) -> str:
    """Bytes as a person reads them, in powers of ten, as the Hub shows them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def in_words(seconds: float) -> str:
    """A time in its largest unit or two."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
