"""What a person sees while a run starts: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from local_vllm.engine.spec import EngineState, EngineStatus

REFRESH_PER_S = 4


class Progress:
    """Steps of the start-up, one for each name, each with what it is doing and for how long."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._begun = time.monotonic()
        self._steps: dict[str, tuple[str, float, float | None]] = {}
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the steps while the block runs."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=self.console, refresh_per_second=REFRESH_PER_S) as self._live:
            yield

    def step(self, name: str, doing: str, *, done: bool = False) -> None:
        """`name` is now `doing` that; `done` ends it."""
        now = time.monotonic()
        previous = self._steps.get(name)
        begun = previous[1] if previous else now
        self._steps[name] = (doing, begun, now if done else None)
        if not self.console.is_terminal and (previous is None or previous[0] != doing):
            self.console.print(f"[{now - self._begun:6.1f} s] {name}: {doing}", highlight=False, soft_wrap=True)

    def engine(self, status: EngineStatus) -> None:
        """A step for an engine, from its status."""
        detail = status.detail.partition("\n")[0]
        doing = {EngineState.STARTING: detail, EngineState.FAILED: f"failed: {detail}"}.get(status.state, str(status.state))
        self.step(status.server, doing, done=status.state is not EngineState.STARTING)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, (doing, begun, ended) in self._steps.items():
            mark = Spinner("dots") if ended is None else Text("✓", style="green")
            table.add_row(mark, name, doing, f"{(ended or time.monotonic()) - begun:5.1f} s")
        return table
