"""A process that fetches the tiny model, on the file system that a test wants, and says how it went."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in_hub import StandInHub

PROGRAM = """
import sys
from pathlib import Path
from local_vllm.engine.fetch import Fetch
from local_vllm.engine.hub import HubAccess, Patience, find_snapshot
from local_vllm.engine.snapshot import WantedModel
from local_vllm.errors import EngineStartError
access, cache, wanted = HubAccess(sys.argv[1]), Path(sys.argv[2]), WantedModel("tiny-org/tiny-model")
try:
    fetch = Fetch(find_snapshot(wanted, cache, access), cache, access, Patience(lost_s=(0.05,)))
    for download in fetch.progress():
        print(download.bytes_done, flush=True)
        exec(sys.argv[3])
except EngineStartError as error:
    sys.exit(f"refused: {error}")
"""


def fetching_process(
    hub: StandInHub, cache: Path, mount: str = "", each_time: str = "", endpoint: str = "", **environment: str
) -> subprocess.Popen[str]:
    """Start it, after `mount` in a mount namespace of its own; `each_time` is run at each step of it."""
    command = [sys.executable, "-c", PROGRAM, endpoint or hub.url, str(cache), each_time]
    if mount:
        command = ["unshare", "--mount", "sh", "-c", f"{mount} && exec {shlex.join(command)}"]
    environment = {**os.environ, **environment}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def need_mounts() -> None:
    """Skip where this user may not mount."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small or a read-only file system")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("mount namespaces are not allowed here")
