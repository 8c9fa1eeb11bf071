"""An engine's log file: what vLLM is doing while it starts, and the lines that tell why it did not."""

from __future__ import annotations

import re
from pathlib import Path

# First match wins on a line; the latest line that matches names the phase. The words are vLLM's own log lines.
_PHASES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (phase, re.compile(pattern, re.IGNORECASE))
    for phase, pattern in (
        ("warming up", r"warming up|warmup|kernel_warmup|starting vllm (api )?server"),
        ("capturing CUDA graphs", r"capturing (cuda )?graphs?|graph capturing"),
        ("compiling", r"compiling a graph|start compiling|dynamo bytecode|torch\.compile (takes|took)"),
        ("sizing the KV cache", r"kv cache size|available kv cache|memory profiling"),
        ("loading weights", r"loading (model )?weights|loading safetensors|starting to load model|loading drafter"),
        ("downloading weights", r"downloading|fetching \d+ files|time spent downloading"),
        ("starting workers", r"placement groups?|ray-based data parallel|started.*dp coordinator|world_size="),
        ("reading the model's configuration", r"resolved architecture|non-default args|vllm api server version"),
    )
)
_NOISE = re.compile(r"Route: /|^INFO: |^\s*(\^+|~+)?\s*$|deprecat|FutureWarning|\[W\d|leaked (shared_memory|semaphore)", re.IGNORECASE)

# Ray colours what it passes on of its workers.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class LogReader:
    """Reads what was appended to a log file since the last call, and keeps the phase it speaks of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.phase = "starting Python"
        self._offset = path.stat().st_size if path.exists() else 0
        self._start = self._offset

    def update(self) -> str:
        """The phase after the newest lines."""
        try:
            with open(self.path, "rb") as log:
                log.seek(self._offset)
                new = log.read(1 << 20)
        except OSError:
            return self.phase
        self._offset += len(new)
        for line in new.decode(errors="replace").splitlines():
            self.phase = phase_of(line) or self.phase
        return self.phase

    def tail(self, lines: int = 15) -> str:
        """The last lines that this launch wrote and that say something; none where the file cannot be read."""
        try:
            with open(self.path, "rb") as log:
                size = log.seek(0, 2)
                log.seek(max(self._start, size - (1 << 16)))
                text = _COLOUR.sub("", log.read().decode(errors="replace"))
        except OSError:
            return ""
        return "\n".join([line for line in text.splitlines() if not _NOISE.search(line)][-lines:])


def phase_of(line: str) -> str | None:
    """The phase that a line of vLLM's log belongs to, if it tells one."""
    return next((phase for phase, pattern in _PHASES if pattern.search(line)), None)
