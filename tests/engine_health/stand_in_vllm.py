"""`python stand_in_vllm.py PORT`: an engine with one worker, as far as its host can tell.

Where a file `port_taken` lies beside its members' folder, it takes that away and ends as vLLM does whose port is taken
after its worker has come up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from aiohttp import web
from enlisted_engine import METRICS

from local_vllm.processes.members import FOLDER, enlist
from local_vllm.processes.tree import start_time


async def models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "m"}]})


async def metrics(request: web.Request) -> web.Response:
    return web.Response(text=METRICS.format(running=0.0, tokens=0.0))


async def completions(request: web.Request) -> web.Response:
    return web.json_response({"choices": []})


def main() -> None:
    enlist()
    folder = Path(os.environ[FOLDER])
    worker = subprocess.Popen(["ray::RayWorkerProc", "600"], executable="/bin/sleep")
    (folder / f"{worker.pid}-{start_time(worker.pid)}").touch()
    taken = Path(os.environ["STAND_IN_PORT_TAKEN"])
    if taken.exists():
        taken.unlink()
        time.sleep(1)
        worker.kill()
        worker.wait()
        sys.exit("OSError: [Errno 98] Address already in use")
    application = web.Application()
    application.router.add_get("/v1/models", models)
    application.router.add_get("/metrics", metrics)
    application.router.add_post("/v1/completions", completions)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
