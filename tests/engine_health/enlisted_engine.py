"""A process that enlists itself like one of vLLM's, with children that do; and a small HTTP side where it is asked.

`python enlisted_engine.py PORT CHILDREN` serves /metrics and /v1/completions; without PORT it only lives, and with
`spin` it uses its CPU.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from aiohttp import web

from local_vllm.processes.members import FOLDER, enlist

METRICS = """# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} 0.0
vllm:num_requests_waiting_by_reason{{engine="0",model_name="m",reason="capacity"}} 5.0
vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens}
"""


class EngineSide:
    """What a file beside it says: `answers` tokens or not, or `refuses` them, `moves` its counters or not, has requests
    `running`, is `paused`.
    """

    def __init__(self, control: Path) -> None:
        self._control = control
        self._tokens = 0

    def control(self) -> dict[str, bool]:
        usual = {"answers": True, "refuses": False, "moves": False, "running": False, "paused": False}
        return usual | json.loads(self._control.read_text())

    async def metrics(self, request: web.Request) -> web.Response:
        control = self.control()
        self._tokens += control["moves"]
        return web.Response(text=METRICS.format(running=float(control["running"]), tokens=float(self._tokens)))

    async def completions(self, request: web.Request) -> web.Response:
        assert request.headers["X-data-parallel-rank"] == "0"
        assert (await request.json())["max_tokens"] == 1
        if self.control()["refuses"]:
            return web.json_response({"error": {"message": "no completions"}}, status=404)
        while not self.control()["answers"]:
            await asyncio.sleep(0.1)
        return web.json_response({"choices": []})

    async def is_paused(self, request: web.Request) -> web.Response:
        return web.json_response({"is_paused": self.control()["paused"]})


def main() -> None:
    enlist()
    words = sys.argv[1:]
    if words == ["live"]:
        time.sleep(600)
    if words == ["spin"]:
        while True:
            time.time()
    port, *children = words
    for child in children:
        subprocess.Popen([sys.executable, __file__, child])
    side = EngineSide(Path(os.environ[FOLDER]).with_suffix(".control"))
    application = web.Application()
    application.router.add_get("/metrics", side.metrics)
    application.router.add_get("/is_paused", side.is_paused)
    application.router.add_post("/v1/completions", side.completions)
    web.run_app(application, host="127.0.0.1", port=int(port), print=None)


if __name__ == "__main__":
    main()
