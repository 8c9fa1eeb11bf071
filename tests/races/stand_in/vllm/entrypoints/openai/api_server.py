"""A stand-in for `python -m vllm.entrypoints.openai.api_server`: it asks Ray for its GPUs as vLLM does, at once where
vLLM imports for half a minute, and answers what a launch asks of an engine. Found before the real one on PYTHONPATH.

Real engines race too, fewer times: twenty races of two take them hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ray
from ray.util.placement_group import placement_group


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--port", "--tensor-parallel-size", "--data-parallel-size"):
        parser.add_argument(name, type=int, default=1)
    parser.add_argument("--served-model-name")
    told, _ = parser.parse_known_args()
    if folder := os.environ.get("VLLM_STAND_IN_MEETS"):
        meet(Path(folder), told.port)
    ray.init(log_to_driver=False, configure_logging=False)
    more = int(os.environ.get("VLLM_STAND_IN_TAKES_MORE", "0"))
    groups = take_gpus(told.data_parallel_size, told.tensor_parallel_size + more)
    for group in groups:
        # Without a deadline, as vLLM waits.
        ray.get(group.ready())
    print("placed", flush=True)
    serve(told.port, told.served_model_name)


def meet(folder: Path, port: int) -> None:
    """Go on when another one has come here too."""
    folder.mkdir(exist_ok=True)
    (folder / str(port)).touch()
    while len(os.listdir(folder)) < 2:
        time.sleep(0.1)


def take_gpus(ranks: int, size: int) -> list:
    """What is free is looked at first and taken later: what falls between is the race."""
    address = os.environ["VLLM_DP_MASTER_IP"]
    free = ray.available_resources().get("GPU", 0)
    time.sleep(random.uniform(0, 0.5))
    if free < ranks * size:
        raise ValueError(f"Not enough resources to allocate {ranks} placement groups: {free} GPUs are free")
    gpu = {"GPU": 1.0, f"node:{address}": 0.001}
    return [
        placement_group([gpu] * size + [{"CPU": 1.0}], strategy="STRICT_PACK", name=f"dp_rank_{rank}")
        for rank in range(ranks)
    ]


def serve(port: int, model: str) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """A token, for whoever asks whether the engine generates."""
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer({"choices": [{"index": 0, "text": "x", "finish_reason": "length"}]})

        def do_GET(self) -> None:
            self.answer({"data": [{"id": model}]})

        def answer(self, told: object) -> None:
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("0.0.0.0", port), Answers).serve_forever()


if __name__ == "__main__":
    main()
