"""The program of nodes_and_disks.Driver: reads orders, a line of JSON each, and answers in the same way."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import ray

from local_vllm.engine.spec import Download, EngineSpec
from local_vllm.engine.weights_on_nodes import provide_weights
from local_vllm.errors import EngineStartError
from local_vllm.plan.placement import Placement, RankPlacement, Slot
from local_vllm.plan.topology import PackStrategy, Topology

BEGINS_WITHIN_S = 60


def spec(model: str, hf_home: str, endpoint: str, nodes: list[str]) -> EngineSpec:
    """An engine with a rank on each of the nodes."""
    ids = {name: node["NodeID"] for node in ray.nodes() for name in node["Resources"]}
    ranks = [RankPlacement(rank, (Slot(ids[name], name, 1),)) for rank, name in enumerate(nodes)]
    topology = Topology("policy_model", len(nodes), 1, 1, PackStrategy.STRICT)
    placement = Placement(topology, tuple(ranks), nodes[0], ids[nodes[0]], 1, tuple(nodes), 0)
    return EngineSpec(
        run_id="r1",
        server="policy_model",
        model=model,
        served_name=model,
        api_key="key",
        vllm_serve_kwargs={},
        vllm_serve_env_vars={},
        placement=placement,
        hf_home=Path(hf_home),
        hf_token=None,
        show_stats=False,
        debug=False,
        start_timeout_s=60,
        log_path=Path("/nowhere.log"),
        hub_variables={"HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1,localhost"},
    )


async def provide(of: EngineSpec, begun: asyncio.Event | None = None) -> dict:
    """`begun` is set when the first bytes are there."""
    told: list[tuple[str, int, int]] = []

    async def tell(detail: str, download: Download | None) -> None:
        told.append((detail, download.bytes_done if download else 0, download.bytes_total if download else 0))
        if begun and download and download.bytes_done:
            begun.set()

    try:
        folder, _ = await provide_weights(of, tell)
        return {"folder": folder, "told": told}
    except EngineStartError as error:
        return {"error": str(error)}


async def cancel_when_begun(of: EngineSpec) -> dict:
    begun = asyncio.Event()
    task = asyncio.create_task(provide(of, begun))
    await asyncio.wait_for(begun.wait(), BEGINS_WITHIN_S)
    asked = time.monotonic()
    task.cancel()
    await asyncio.wait([task])
    return {"cancelled": task.cancelled(), "took_s": time.monotonic() - asked}


@ray.remote(num_cpus=0)
class Owner:
    """Owns what it starts, as the actor of an engine does."""

    async def provide(self, of: EngineSpec) -> dict:
        return await provide(of)


def main() -> None:
    ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)
    owner = None
    for line in sys.stdin:
        order = json.loads(line)
        what = order.pop("what")
        answer: dict = {}
        if what == "provide":
            answer = asyncio.run(provide(spec(**order)))
        elif what == "cancel":
            answer = asyncio.run(cancel_when_begun(spec(**order)))
        elif what == "own":
            owner = Owner.remote()
            owner.provide.remote(spec(**order))
        elif what == "kill the owner":
            ray.kill(owner)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
