"""What a collection in this process has left: its failures, and what it said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from collector_process import written
from rich.console import Console

from local_vllm.rollouts.files import Paths
from local_vllm.rollouts.summary import Summary

# The fixture `collect`.
Collect = Callable[..., Awaitable[Summary]]


def failed(output: Path) -> list[dict[str, Any]]:
    path = Paths(output).failures
    return written(path) if path.exists() else []


def said(console: Console) -> str:
    return console.file.getvalue()
